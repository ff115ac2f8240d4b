// The page's words: one dictionary for each language, and numbers and times as people there write them.
import en from "./en.js";
import zh from "./zh.js";
import { read, write } from "./memory.js";

export const TEXTS = { en, zh };
const LOCALES = { en: "en-GB", zh: "zh-CN" };
export const NAMES = { en: "English", zh: "中文" };

let language = read("language") ?? (navigator.language?.toLowerCase().startsWith("zh") ? "zh" : "en");
if (!(language in TEXTS)) language = "en";

export const chosen = () => language;

export function choose(name) {
  language = name;
  write("language", name);
  announce();
}

function announce() {
  document.documentElement.lang = LOCALES[language];
  formats.clear();
}

/** The text with this key; `{name}` in it is replaced by what is given. A key with `.one` beside it is for one. */
export function t(key, given) {
  const texts = TEXTS[language];
  const single = given?.n === 1 && texts[`${key}.one`];
  const text = single || texts[key];
  if (text === undefined) throw new Error(`no text ${key}`);
  if (!given) return text;
  return text.replace(/\{(\w+)\}/g, (_, name) => (typeof given[name] === "number" ? count(given[name]) : given[name]));
}

const formats = new Map();
function format(kind, key, options) {
  const name = kind + key;
  if (!formats.has(name)) formats.set(name, new Intl[kind](LOCALES[language], options));
  return formats.get(name);
}

const NONE = "–";

/** A whole number, with its thousands apart. */
export const count = (n) =>
  n === null || n === undefined ? NONE : format("NumberFormat", "0", { maximumFractionDigits: 0 }).format(n);

/** A number with three digits that say something. */
export function figure(n) {
  if (n === null || n === undefined || Number.isNaN(n)) return NONE;
  const digits = Math.abs(n) >= 100 || Number.isInteger(n) ? 0 : Math.abs(n) >= 10 ? 1 : 2;
  return format("NumberFormat", digits, { maximumFractionDigits: digits }).format(n);
}

const UNITS = ["B", "kB", "MB", "GB", "TB"];
/** Bytes, in the unit that makes it short. */
export function bytes(n) {
  let unit = 0;
  for (; n >= 1000 && unit < UNITS.length - 1; unit++) n /= 1000;
  return `${unit ? figure(n) : count(n)} ${UNITS[unit]}`;
}

/** How long that is, in the two units that matter. */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const parts = [
    [Math.floor(s / 86400), "unit.d"],
    [Math.floor(s / 3600) % 24, "unit.h"],
    [Math.floor(s / 60) % 60, "unit.min"],
    [s % 60, "unit.s"],
  ];
  const first = parts.findIndex(([n]) => n);
  if (first < 0) return `0 ${t("unit.s")}`;
  return parts
    .slice(first, first + 2)
    .filter(([n]) => n)
    .map(([n, unit]) => `${n} ${t(unit)}`)
    .join(" ");
}

const date = (moment) => (moment instanceof Date ? moment : new Date(moment));
/** A time of day, to the second. */
export const clock = (moment) => format("DateTimeFormat", "t", { timeStyle: "medium" }).format(date(moment));
/** A day and a time of it. */
export const moment = (at) =>
  at === null || at === undefined
    ? NONE
    : format("DateTimeFormat", "dt", { dateStyle: "medium", timeStyle: "medium" }).format(date(at));

announce();
