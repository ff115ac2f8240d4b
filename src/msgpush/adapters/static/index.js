"use strict";

const MOST = 50;
const list = document.querySelector("#messages");
const state = document.querySelector("#state");
const listenForm = document.querySelector("#listen");
const publishForm = document.querySelector("#publish");
let stream = null;

function show(kind, type, content, time = new Date()) {
  const item = document.createElement("li");
  item.className = kind;
  const label = document.createElement("span");
  label.className = "type";
  label.textContent = type;
  const text = document.createElement("span");
  text.className = "text";
  text.append(content);
  const moment = document.createElement("time");
  moment.textContent = time.toLocaleTimeString();
  item.append(label, text, moment);
  list.prepend(item);
  while (list.children.length > MOST) list.lastChild.remove();
}

function bar(percent) {
  const progress = document.createElement("progress");
  progress.max = 100;
  progress.value = percent;
  progress.textContent = `${percent} %`;
  progress.setAttribute("aria-label", `${percent} percent`);
  return progress;
}

function say(text, open = false) {
  state.textContent = text;
  state.classList.toggle("open", open);
}

function listen(channel) {
  stream?.close();
  list.replaceChildren();
  say("connecting");
  // All types as whole messages: this page shows each of them alike.
  stream = new EventSource(`sse/stream/${encodeURIComponent(channel)}?events=none&last_event_id=earliest`);
  stream.addEventListener("msgpush.open", () => say("live", true));
  stream.addEventListener("error", () => say(stream.readyState === EventSource.CLOSED ? "closed" : "reconnecting"));
  stream.addEventListener("message", (event) => {
    const message = JSON.parse(event.data);
    const content = message.type === "progress" ? bar(message.data.progress) : message.data.text ?? JSON.stringify(message.data);
    show(message.type, message.type, content, new Date(message.timestamp));
  });
  stream.addEventListener("msgpush.gap", (event) => {
    const { channel, reason } = JSON.parse(event.data);
    const why = { trimmed: "the history is shorter", expired: "their time was over", reset: "the server has started anew" };
    show("gap", "gap", `Messages ${channel ? `of ${channel} ` : ""}may be missing: ${why[reason]}.`);
  });
  stream.addEventListener("msgpush.close", (event) => {
    const { reason, reconnect } = JSON.parse(event.data);
    show("close", "closed", `The server has closed the stream (${reason})${reconnect ? "; it opens again soon" : ""}.`);
  });
  document.querySelector("#curl").textContent = curl(channel);
}

function curl(channel) {
  const base = new URL(".", location.href).href;
  const body = JSON.stringify({ type: "info", service: "me", channels: [channel], data: { text: "Hello" } });
  return `curl -N ${base}sse/stream/${encodeURIComponent(channel)}\n\ncurl ${base}api/v1/messages/send -d '${body}'`;
}

async function publish(channel, type, text) {
  const data = type === "progress" ? { progress: Math.min(100, Math.max(0, Number.parseFloat(text) || 0)) } : { text };
  const body = JSON.stringify({ type, service: "start-page", channels: [channel], data });
  const response = await fetch("api/v1/messages/send", { method: "POST", body });
  if (!response.ok) show("error", "refused", (await response.json()).detail);
}

listenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  listen(listenForm.elements.channel.value);
});
publishForm.addEventListener("submit", (event) => {
  event.preventDefault();
  publish(listenForm.elements.channel.value, publishForm.elements.type.value, publishForm.elements.text.value).catch((error) =>
    show("error", "refused", `The service can't be reached: ${error.message}`),
  );
});
listen(listenForm.elements.channel.value);
