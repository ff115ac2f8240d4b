"use strict";

// Messages that ask for an acknowledgement. Each is sent again until it has one; the client drops what has come before.

const PENDING = "../api/v1/users/demo/pending";
const TITLE = document.title;
const questionList = document.querySelector("#questions");
const receiptList = document.querySelector("#receipts");
const badge = document.querySelector("#badge");
const questions = new Map(); // what waits for an answer, by key
const ended = new Map(); // what doesn't any longer: its state

const keyOf = ({ service, id }) => `${service}/${id}`;

let looks = Promise.resolve();
let willLook = false;

// A question that the history has may have been answered long ago, in another tab: what is pending is asked for.
function look() {
  if (willLook) return;
  willLook = true;
  looks = looks.then(async () => {
    willLook = false;
    const answer = await fetch(PENDING);
    if (answer.ok) showQuestions((await answer.json()).messages);
  }).catch(() => {}); // the service is away: the stream opens again, and then this is asked again
}

function showQuestions(messages) {
  const pending = new Map(messages.map((message) => [keyOf(message), message]));
  for (const key of questions.keys()) if (!pending.has(key)) end(key);
  let place = 0;
  for (const [key, message] of pending) {
    if (ended.has(key)) continue; // since it was asked for
    if (!questions.has(key)) questions.set(key, questionItem(key, message));
    const item = questions.get(key);
    const there = questionList.children[place] ?? null;
    if (there !== item) questionList.insertBefore(item, there);
    showTimes(item, message);
    place++;
  }
  showBadge();
}

function questionItem(key, message) {
  const { data } = message;
  const item = document.createElement("li");
  const button = element("button", "", data.answer);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await push.acknowledge(message);
      end(key, "acknowledged");
    } catch {
      notice("Your answer has not reached the service. Please give it again.");
      button.disabled = false;
    }
  });
  item.append(element("span", "question", data.question), element("span", "note"), button);
  return item;
}

function showTimes(item, { metadata }) {
  const times = metadata.retry_count + 1;
  item.querySelector(".note").textContent = times > 1 ? `asked ${times} times` : "";
}

function end(key, state) {
  if (state !== undefined) ended.set(key, state);
  questions.get(key)?.remove();
  questions.delete(key);
  showBadge();
}

function showBadge() {
  const { size } = questions;
  badge.hidden = size === 0;
  badge.textContent = size;
  document.title = size ? `(${size}) ${TITLE}` : TITLE;
}

// What the service has told the worker about a question, and the worker tells everybody.
function showReceipt({ key, question, state, deliveries, at }) {
  end(key, state); // of one that was given up, nothing else tells
  const item = element("li", state);
  const times = deliveries > 0 ? ` after ${deliveries} ${deliveries === 1 ? "delivery" : "deliveries"}` : "";
  const moment = element("time", "", new Date(at).toLocaleTimeString());
  moment.dateTime = at;
  const note = element("span", "note", `Receipt: ${state}${times}, `);
  note.append(moment);
  item.append(element("span", "", question), note);
  receiptList.prepend(item);
}
