"use strict";

const MOST_NOTICES = 8;
const GAPS = {
  trimmed: "the history is shorter",
  expired: "their time was over",
  reset: "the service has started anew and forgotten everything; the worker says its state again",
};
const list = document.querySelector("#files");
const job = document.querySelector("#job");
const state = document.querySelector("#state");
const notices = document.querySelector("#notices");
const files = new Map();
let expected = 0;

function element(tag, kind, text = "") {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = text;
  return made;
}

function fileOf(name) {
  let file = files.get(name);
  if (file === undefined) {
    file = { item: element("li", ""), percent: 0, bar: document.createElement("progress") };
    file.number = element("span", "percent");
    file.note = element("span", "note");
    file.bar.max = 100;
    file.bar.setAttribute("aria-label", name);
    const title = element("span", "name");
    // A long path is broken after its slashes.
    title.append(...name.split(/(?<=\/)/).flatMap((part) => [part, document.createElement("wbr")]));
    const bar = element("span", "bar");
    bar.append(file.bar, file.number);
    file.item.append(title, bar, file.note);
    list.prepend(file.item);
    files.set(name, file);
  }
  return file;
}

function showFile(name, kind, percent, note) {
  const file = fileOf(name);
  file.item.className = kind;
  file.percent = percent;
  file.bar.value = percent;
  file.number.textContent = kind === "error" ? "error" : `${Math.floor(percent)} %`;
  file.note.textContent = note;
  showTotal();
}

function showTotal() {
  const all = [...files.values()];
  // What can't be read is done with, too.
  const done = all.reduce((sum, file) => sum + file.percent, 0);
  const percent = Math.floor(done / Math.max(1, expected, all.length));
  const failed = all.filter((file) => file.item.className === "error").length;
  const indexed = all.filter((file) => file.item.className === "success").length;
  document.querySelector("#total").value = percent;
  document.querySelector("#percent").textContent = `${percent} %`;
  document.querySelector("#counts").textContent =
    all.length === 0 ? "" : `${all.length} of ${plural(expected)} opened: ${indexed} indexed, ${failed} unreadable`;
}

function plural(number) {
  return `${number} ${number === 1 ? "file" : "files"}`;
}

function showJob(data) {
  expected = data.files;
  const working = `Indexing ${plural(data.files)} of the folder “${data.folder}”.`;
  const { failed } = data;
  const done = `Done: ${plural(data.files - failed)} of the folder “${data.folder}” indexed, ${failed} could not be read.`;
  job.textContent = data.state === "finished" ? done : working;
  showTotal();
}

// The task itself says that it has begun, how far it is, and that it is done: here its files tell that.
const handlers = {
  status(data) {
    if (data.files !== undefined) showJob(data);
    else if (data.file !== undefined) showFile(data.file, "status", 0, `${data.chunks} ${data.chunks === 1 ? "chunk" : "chunks"} to read`);
  },
  progress({ file, progress, stage, details }) {
    if (file !== undefined) showFile(file, "progress", progress, `chunk ${details.chunk} of ${details.chunks}: ${stage}`);
  },
  success({ file, words, terms }) {
    if (file !== undefined) showFile(file, "success", 100, terms.length ? `${words} words: ${terms.join(", ")}` : "no words");
  },
  error({ file, message }) {
    if (file !== undefined) showFile(file, "error", 100, message);
    else notice(`The worker has failed: ${message}`);
  },
  info: showReceipt, // the worker's word about a question
};

function say(text) {
  state.textContent = text;
  state.className = text;
}

function notice(text) {
  const items = notices.querySelector("ol");
  let item = items.lastElementChild;
  if (item?.dataset.text !== text) {
    item = document.createElement("li");
    item.dataset.text = text;
    item.dataset.times = 0;
    items.append(item);
    if (items.children.length > MOST_NOTICES) items.firstElementChild.remove();
  }
  item.dataset.times++;
  const said = document.createElement("span");
  said.textContent = item.dataset.times > 1 ? `${text} (${item.dataset.times} times)` : text;
  const moment = document.createElement("time");
  const now = new Date();
  moment.dateTime = now.toISOString();
  moment.textContent = now.toLocaleTimeString();
  item.replaceChildren(said, moment);
  notices.hidden = false;
}

function forget() {
  files.clear();
  receiptList.replaceChildren();
  list.replaceChildren();
  expected = 0;
  job.textContent = "Waiting for the worker.";
  showTotal();
}

// For ever, and from where it was: nothing is lost and nothing doubled, or a gap says so.
const push = new MsgPush("..", { channels: ["demo", "user:demo", "answers"], since: "earliest" });
push.on("message", (message) => {
  if (message.channels?.includes("answers")) answered(message.data);
  else if (message.metadata.ack) look();
  else handlers[message.type]?.(message.data);
});
push.on("open", () => {
  say("live");
  look();
});
// Answered in another tab, or replaced by a newer question.
push.on("acknowledged", ({ keys, state }) => {
  for (const key of keys) end(key, state);
});
push.on("gap", ({ reason }) => {
  if (reason === "reset") {
    forget();
    forgetAnswers();
  }
  notice(`Messages may be missing (${reason}): ${GAPS[reason] ?? "it is not known why"}.`);
});
push.on("close", ({ reason, reconnect }) => {
  say(reconnect ? "reconnecting" : "closed");
  if (reason !== "lost")
    notice(`The service has closed the stream (${reason})${reconnect ? "; it opens again soon" : ""}.`);
});
