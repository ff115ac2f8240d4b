// Light and dark: as the system has it, or as it is chosen here.
import { read, write } from "./memory.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const changed = new EventTarget();

export const SCHEMES = ["auto", "light", "dark"];
let scheme = SCHEMES.includes(read("scheme")) ? read("scheme") : "auto";

export const chosenScheme = () => scheme;

export function chooseScheme(name) {
  scheme = name;
  write("scheme", name);
  apply();
}

function apply() {
  const shown = scheme === "auto" ? (dark.matches ? "dark" : "light") : scheme;
  document.documentElement.dataset.scheme = shown;
  changed.dispatchEvent(new Event("change"));
}

/** A colour of the page, by its name in base.css. */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Be told when colours are others. */
export const onScheme = (act, signal) => changed.addEventListener("change", act, { signal });

dark.addEventListener("change", apply);
apply();
