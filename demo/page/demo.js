"use strict";

const files = new Map();
const list = document.querySelector("#files");
const job = document.querySelector("#job");
const total = document.querySelector("#total");
const notice = document.querySelector("#notice");

function row(name) {
  if (!files.has(name)) {
    const item = document.createElement("li");
    item.innerHTML = '<span class="name"></span><progress max="100" value="0"></progress><span class="note"></span>';
    item.querySelector(".name").textContent = name;
    item.querySelector("progress").setAttribute("aria-label", name);
    list.append(item);
    files.set(name, item);
  }
  return files.get(name);
}

function update(name, kind, percent, note) {
  const item = row(name);
  item.className = kind;
  if (percent !== null) item.querySelector("progress").value = percent;
  item.querySelector(".note").textContent = note;
  const done = list.querySelectorAll(".success, .error").length;
  total.value = done;
}

const handlers = {
  status({ state, folder, files: number, failed }) {
    if (state === "started") {
      total.max = Math.max(1, number);
      job.textContent = `${number} files of ${folder}`;
    } else {
      total.max = Math.max(1, number);
      job.textContent = `Done: ${number - failed} files indexed, ${failed} could not be read.`;
    }
  },
  progress: ({ file, progress, details }) => update(file, "progress", progress, `chunk ${details.chunk} of ${details.chunks}`),
  success: ({ file, words, terms }) => update(file, "success", 100, `${words} words: ${terms.join(", ")}`),
  error: ({ file, message }) => update(file, "error", null, message),
};

const stream = new EventSource("../sse/stream/demo?events=none&last_event_id=earliest");
stream.onmessage = (event) => {
  const { type, data } = JSON.parse(event.data);
  handlers[type]?.(data);
};
stream.addEventListener("msgpush.open", () => {
  if (notice.dataset.kind === "away") notice.textContent = "";
});
stream.addEventListener("msgpush.gap", (event) => {
  const { reason } = JSON.parse(event.data);
  notice.dataset.kind = "gap";
  if (reason === "reset") {
    files.clear();
    list.replaceChildren();
    total.value = 0;
    notice.textContent = "The service has started anew and forgotten everything (reset). The worker tells its state again.";
  } else {
    notice.textContent = `Some messages are missing (${reason}).`;
  }
});
stream.addEventListener("error", () => {
  notice.dataset.kind = "away";
  notice.textContent = "The service is away. The page continues where it was when it is back.";
});
