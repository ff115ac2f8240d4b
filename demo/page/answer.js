"use strict";

// An answer that comes piece by piece. Each piece has a number: so it doesn't matter how often one comes, or in which order.

const answerTitle = document.querySelector("#answer-question");
const answerText = document.querySelector("#answer-text");
const answerState = document.querySelector("#answer-state");
const askForm = document.querySelector("#ask");
const answers = new Map(); // by id: { question, pieces, length }, the newest last

function answered({ answer: id, question, number, text, last }) {
  if (id === undefined) return; // the writer's own word
  if (question !== undefined && !answers.has(id)) answers.set(id, { question, pieces: [] });
  const answer = answers.get(id);
  if (answer !== undefined && number !== undefined) {
    answer.pieces[number] = text;
    if (last) answer.length = number + 1;
  }
  showAnswer();
}

function showAnswer() {
  const newest = [...answers.values()].at(-1);
  const missing = newest ? newest.pieces.findIndex((piece) => piece === undefined) : 0;
  const pieces = newest ? newest.pieces.slice(0, missing < 0 ? undefined : missing) : [];
  const done = newest?.length !== undefined && pieces.length === newest.length;
  answerTitle.textContent = newest?.question ?? "";
  answerText.textContent = pieces.join("");
  answerText.className = newest && !done ? "writing" : "";
  const words = `${pieces.length} ${pieces.length === 1 ? "word" : "words"}`;
  answerState.textContent = newest ? (done ? `complete, ${words}` : `being written, ${words} so far`) : "Nobody has asked yet.";
}

function forgetAnswers() {
  answers.clear();
  showAnswer();
}

askForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = crypto.randomUUID();
  const question = new FormData(askForm).get("question").trim();
  const message = {
    id: answer,
    type: "custom",
    service: "demo-page",
    channels: ["answers"],
    data: { answer, question },
    metadata: { ttl: 604_800 },
  };
  const sent = await fetch("../api/v1/messages/send", { method: "POST", body: JSON.stringify(message) }).catch(() => null);
  if (!sent?.ok) notice("Your question has not reached the service. Please ask again.");
});

showAnswer();
