// What is wrong between this page and the service: a quiet banner while it lasts, and a word when it is over.
import { ask, onOutcome } from "./api.js";
import { fill, h } from "./dom.js";
import { t } from "./i18n.js";

const LOOK_EVERY = 2000;
const recovered = new EventTarget();
/** Be told when what was away is back. */
export const onRecovery = (act, signal) => recovered.addEventListener("back", act, { signal });

export const banner = h("div", { class: "banner", role: "status" });
/** What was away, or refused, may be asked for again. */
export const recover = () => void recovered.dispatchEvent(new Event("back"));

let trouble = null;
let timer;

function show(kind) {
  if (trouble === kind) return;
  trouble = kind;
  fill(banner, kind && h("p", {}, h("span", { class: "pulse" }), t(kind)));
}

/** Its words anew, in another language. */
export function retell() {
  const kind = trouble;
  trouble = null;
  show(kind);
}

async function look() {
  try {
    await ask("health", { quiet: true });
  } catch (problem) {
    show(problem.status === 0 ? "trouble.network" : "trouble.service");
    timer = setTimeout(look, LOOK_EVERY);
    return;
  }
  timer = undefined;
  show(null);
  recover();
}

onOutcome((problem) => {
  if (!problem?.passes || problem.status === 500) return;
  show(problem.status === 0 ? "trouble.network" : "trouble.service");
  timer ??= setTimeout(look, LOOK_EVERY);
});
addEventListener("online", () => {
  if (timer === undefined) return;
  clearTimeout(timer);
  timer = setTimeout(look, 0);
});
