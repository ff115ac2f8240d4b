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
let token = "";

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

async function listen() {
  stream?.close();
  list.replaceChildren();
  jobs.clear();
  channel = listenForm.elements.channel.value;
  token = listenForm.elements.token.value.trim();
  document.querySelector("#curl").textContent = commands();
  say("connecting");
  // All types as whole messages: this page shows each of them alike.
  const path = `sse/stream/${encodeURIComponent(channel)}?events=none&last_event_id=earliest`;
  const ticket = token ? await newTicket() : "";
  if (ticket === null) return say("closed");
  const opened = new EventSource(ticket ? `${path}&token=${encodeURIComponent(ticket)}` : path);
  stream = opened;
  opened.addEventListener("msgpush.open", () => say("live"));
  opened.addEventListener("error", () => {
    if (opened.readyState !== EventSource.CLOSED) return say("reconnecting");
    say("closed");
    if (!token) explain(path);
  });
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
}

function authorization() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function call(path, options) {
  // The answer's JSON, or null where it was refused, which is shown.
  let refusal;
  try {
    const response = await fetch(path, { ...options, headers: authorization() });
    if (response.ok) return options.method === "HEAD" ? {} : await response.json();
    const problem = await response.json().catch(() => ({}));
    refusal = problem.detail ?? `The answer is ${response.status} ${response.statusText}.`;
    if (response.status === 401) {
      document.querySelector("#token").hidden = false;
      refusal = problem.detail ?? "The service asks for a token: `msgpush token issue` makes one.";
    }
  } catch (error) {
    refusal = `The service can't be reached: ${error.message}`;
  }
  show("error", "refused", refusal);
  return null;
}

async function newTicket() {
  // An EventSource sends no headers, and a token doesn't belong in an address: a ticket does.
  const answer = await call("api/v1/tickets", { method: "POST", body: JSON.stringify({ channels: [channel] }) });
  return answer?.ticket ?? null;
}

function explain(path) {
  // An EventSource doesn't tell why it was refused.
  call(path, { method: "HEAD" });
}

function quoted(text) {
  return /^[\w%+=:,./@-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

function commands() {
  const base = new URL(".", location.href).href;
  const message = JSON.stringify({ type: "info", service: "me", channels: [channel], data: { text: "Hello" } });
  const header = token ? ' -H "Authorization: Bearer $TOKEN"' : "";
  return [
    `curl -N${header} ${quoted(`${base}sse/stream/${encodeURIComponent(channel)}`)}`,
    "",
    `curl${header} ${quoted(`${base}api/v1/messages/send`)} \\`,
    `  -d ${quoted(message)}`,
  ].join("\n");
}

async function publish(type, data) {
  const body = JSON.stringify({ type, service: "start-page", channels: [channel], data });
  return (await call("api/v1/messages/send", { method: "POST", body })) !== null;
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
  listen();
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
listen();
