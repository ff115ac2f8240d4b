"use strict";

const MOST = 50;
const GAPS = {
  trimmed: "the history is shorter",
  expired: "their time was over",
  reset: "the server has started anew",
};
const list = document.querySelector("#messages");
const state = document.querySelector("#state");
const listenForm = document.querySelector("#listen");
const publishForm = document.querySelector("#publish");
const jobs = new Map();
let stream = null;
let channel = "";

function span(kind, content) {
  const element = document.createElement("span");
  element.className = kind;
  element.append(content);
  return element;
}

function show(kind, label, content, note = "", time = new Date()) {
  const item = document.createElement("li");
  item.className = kind;
  const text = span("text", content);
  if (note) text.append(" ", span("note", note));
  const moment = document.createElement("time");
  moment.dateTime = time.toISOString();
  moment.textContent = time.toLocaleTimeString();
  item.append(span("type", label), text, moment);
  list.prepend(item);
  while (list.children.length > MOST) list.lastChild.remove();
  return item;
}

function bar(percent) {
  const progress = document.createElement("progress");
  progress.max = 100;
  progress.value = percent;
  progress.setAttribute("aria-label", "progress");
  const row = span("bar", progress);
  row.append(span("percent", `${Math.floor(percent)} %`));
  return row;
}

function words(data) {
  const text = data.text ?? data.message;
  return typeof text === "string" ? text : JSON.stringify(data);
}

function showMessage(message) {
  const { type, service, source, data } = message;
  const isProgress = type === "progress";
  const stage = isProgress && typeof data.stage === "string" && `${data.stage}:`;
  const note = [stage, service, source].filter(Boolean).join(" ");
  const content = isProgress ? bar(data.progress) : words(data);
  const item = show(type, type, content, note, new Date(message.timestamp));
  if (!isProgress || data.task_id === undefined) return;
  // A task is one bar, that moves.
  const task = JSON.stringify([service, data.task_id]);
  jobs.get(task)?.remove();
  jobs.delete(task);
  jobs.set(task, item);
  if (jobs.size > MOST) jobs.delete(jobs.keys().next().value);
}

function say(text) {
  state.textContent = text;
  state.className = text;
}

function listen(name) {
  stream?.close();
  list.replaceChildren();
  jobs.clear();
  channel = name;
  say("connecting");
  // All types as whole messages: this page shows each of them alike.
  const opened = new EventSource(`sse/stream/${encodeURIComponent(channel)}?events=none&last_event_id=earliest`);
  stream = opened;
  opened.addEventListener("msgpush.open", () => say("live"));
  opened.addEventListener("error", () => say(opened.readyState === EventSource.CLOSED ? "closed" : "reconnecting"));
  opened.addEventListener("message", (event) => showMessage(JSON.parse(event.data)));
  opened.addEventListener("msgpush.gap", (event) => {
    const gap = JSON.parse(event.data);
    const of = gap.channel === null ? "" : `of ${gap.channel} `;
    show("gap", "gap", `Messages ${of}may be missing: ${GAPS[gap.reason] ?? gap.reason}.`);
  });
  opened.addEventListener("msgpush.close", (event) => {
    const { reason, reconnect } = JSON.parse(event.data);
    show("close", "closed", `The server has closed the stream (${reason})${reconnect ? "; it opens again soon" : ""}.`);
  });
  document.querySelector("#curl").textContent = commands();
}

function quoted(text) {
  return /^[\w%+=:,./@-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

function commands() {
  const base = new URL(".", location.href).href;
  const message = JSON.stringify({ type: "info", service: "me", channels: [channel], data: { text: "Hello" } });
  return [
    `curl -N ${quoted(`${base}sse/stream/${encodeURIComponent(channel)}`)}`,
    "",
    `curl ${quoted(`${base}api/v1/messages/send`)} \\`,
    `  -d ${quoted(message)}`,
  ].join("\n");
}

async function publish(type, data) {
  const body = JSON.stringify({ type, service: "start-page", channels: [channel], data });
  let refusal = null;
  try {
    const response = await fetch("api/v1/messages/send", { method: "POST", body });
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      refusal = problem.detail ?? `The answer is ${response.status} ${response.statusText}.`;
    }
  } catch (error) {
    refusal = `The service can't be reached: ${error.message}`;
  }
  if (refusal !== null) show("error", "refused", refusal);
  return refusal === null;
}

async function play() {
  const task_id = `task_${Math.random().toString(36).slice(2, 8)}`;
  const stages = ["reading", "splitting", "embedding", "storing"];
  for (let progress = 0; progress <= 100; progress += 4) {
    const stage = stages[Math.min(3, Math.floor(progress / 25))];
    if (!(await publish("progress", { task_id, progress, stage }))) return;
    await new Promise((resolve) => setTimeout(resolve, 150));
  }
  await publish("success", { task_id, text: "document.pdf is done" });
}

listenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  listen(listenForm.elements.channel.value);
});
publishForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const { type, text, percent } = publishForm.elements;
  publish(type.value, type.value === "progress" ? { progress: percent.valueAsNumber } : { text: text.value });
});
publishForm.elements.type.addEventListener("change", (event) => {
  const isProgress = event.target.value === "progress";
  document.querySelector("#text").hidden = isProgress;
  document.querySelector("#percent").hidden = !isProgress;
  publishForm.elements.percent.disabled = !isProgress;
});
document.querySelector("#job").addEventListener("click", async (event) => {
  event.target.disabled = true;
  await play();
  event.target.disabled = false;
});
// A reload may have kept what was chosen before.
publishForm.elements.type.dispatchEvent(new Event("change"));
listen(listenForm.elements.channel.value);
