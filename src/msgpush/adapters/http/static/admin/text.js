// Texts of others, made harmless to look at: isolated, cut, and with what can't be seen made visible.
import { h } from "./dom.js";

// Controls; what turns the direction of text; what has no width; tags. Not the joiners, which emoji need.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

const named = (character) => `\u2039U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u203a`;

/** A text in which nothing is invisible; line ends and tabs stay. */
export function visible(text) {
  return text.replace(HIDDEN, named);
}

/** The first so many characters on one line, and an ellipsis where there are more. */
export function short(text, most = 120) {
  const cut = text.length > most ? `${text.slice(0, most).replace(/[\ud800-\udbff]$/, "")}…` : text;
  return visible(cut.replace(/[\n\t\r]+/g, " "));
}

/** A value as an element: not of this page's language, and with a direction of its own. */
export function data(value, most = 200, tag = "bdi") {
  const text = String(value ?? "");
  const long = text.length > most;
  return h(tag, { translate: "no", class: "data", title: long && short(text, 1000) }, short(text, most));
}

/** The same in the letters of a machine. */
export function code(value, most = 200) {
  const element = data(value, most);
  element.classList.add("mono");
  return element;
}

/** Copy a text; whether that was possible. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard without TLS, or no permission: the old way.
    const area = h("textarea", { value: text, class: "away", "aria-hidden": "true", tabindex: "-1" });
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}
