// What views are built of: headings, notes of what can't be shown, tables, dialogs.
import { fill, h, icon, newId } from "./dom.js";
import { t } from "./i18n.js";
import { copy, data, visible } from "./text.js";

/** A view's heading, which takes the focus when the view is opened. */
export function heading(key, ...beside) {
  return h(
    "div",
    { class: "heading" },
    h("div", {}, h("h1", { tabindex: "-1" }, t(`${key}.title`)), h("p", { class: "lead" }, t(`${key}.lead`))),
    beside,
  );
}

/** A place with nothing in it, and what would put something there. */
export const nothing = (text, hint, drawing = "empty") =>
  h("div", { class: "nothing" }, icon(drawing), h("p", {}, h("strong", {}, text)), hint && h("p", {}, hint));

/** Why something isn't shown: not allowed, not there, not now. */
export function refusal(problem) {
  const said = problem.detail && h("p", { class: "quiet" }, data(problem.detail, 500));
  if (problem.status === 403)
    return h(
      "div",
      { class: "nothing", role: "note" },
      icon("lock"),
      h("p", {}, h("strong", {}, t("refused.title"))),
      said,
      h("p", {}, t("refused.hint")),
    );
  if (problem.passes) return nothing(t("away.title"), t("away.hint"), "cloud");
  if (problem.status === 404)
    return h("div", { class: "nothing" }, icon("empty"), h("p", {}, h("strong", {}, t("missing.title"))), said);
  return h(
    "div",
    { class: "notice bad", role: "alert" },
    h("p", {}, h("strong", {}, t("failed.title"))),
    said,
    faults(problem),
  );
}

/** The faults that a problem lists, each with where it is. */
export function faults(problem) {
  if (!problem.errors?.length) return null;
  return h(
    "ul",
    {},
    problem.errors
      .slice(0, 20)
      .map((each) => h("li", {}, each.pointer && [data(each.pointer), ": "], data(each.detail, 500))),
  );
}

/** A word about a state, in its colour. */
export const badge = (kind, text) => h("span", { class: `badge ${kind}` }, text);

/** A line that tells screen readers, too, what has been done. */
export function status() {
  const line = h("p", { class: "status", role: "status" });
  return {
    element: line,
    say(...words) {
      fill(line, ...words);
    },
  };
}

/**
 * A table that becomes a list of cards where it is narrow.
 * @param {string} caption for screen readers
 * @param {{key: string, label: string, number?: boolean, cell: (row) => any}[]} columns
 */
export function table(caption, columns) {
  const body = h("tbody", { role: "rowgroup" });
  const element = h(
    "div",
    { class: "table", tabindex: "0", role: "group", "aria-label": caption },
    // The roles stand here, since `display: block` would take them away.
    h(
      "table",
      { role: "table" },
      h("caption", { class: "away" }, caption),
      h(
        "thead",
        { role: "rowgroup" },
        h(
          "tr",
          { role: "row" },
          columns.map((c) => h("th", { role: "columnheader", scope: "col", class: c.number && "number" }, c.label)),
        ),
      ),
      body,
    ),
  );
  return {
    element,
    show(rows) {
      fill(
        body,
        rows.map((row) =>
          h(
            "tr",
            { role: "row" },
            columns.map((c) =>
              h("td", { role: "cell", class: c.number && "number", "data-label": c.label }, h("div", {}, c.cell(row))),
            ),
          ),
        ),
      );
    },
  };
}

/** Definitions, side by side where there is room. */
export function facts(pairs) {
  return h(
    "dl",
    { class: "facts" },
    pairs
      .filter(([, value]) => value !== null && value !== undefined)
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/** A labelled field; `hint` stands below it, and `wrong` says what is wrong with it. */
export function field(label, control, { hint, wide, key } = {}) {
  const id = newId("field");
  control.id = id;
  const wrong = h("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
  control.setAttribute("aria-describedby", [hint && `${id}-hint`, `${id}-wrong`].filter(Boolean).join(" "));
  const element = h(
    "div",
    { class: `field${wide ? " wide" : ""}`, "data-key": key },
    h("label", { for: id }, label),
    control,
    hint && h("p", { class: "hint", id: `${id}-hint` }, hint),
    wrong,
  );
  return {
    element,
    control,
    /** Say what is wrong; with an empty text, that nothing is. */
    complain(text) {
      if (wrong.textContent !== text) wrong.textContent = text;
      wrong.hidden = !text;
      if (text) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
    },
  };
}

export function options(pairs, value) {
  return pairs.map(([name, label]) => h("option", { value: name, selected: name === value }, label));
}

/** Buttons of which one is on. */
export function choice(label, pairs, value, chosen) {
  const group = h("div", { class: "choice", role: "group", "aria-label": label });
  const buttons = pairs.map(([name, text]) =>
    h("button", { type: "button", "aria-pressed": String(name === value), onclick: () => set(name) }, text),
  );
  function set(name) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(pairs[i][0] === name)));
    chosen(name);
  }
  group.append(...buttons);
  return group;
}

/**
 * Ask before something is done that can't be undone.
 * @param {{title: string, text: any, actions: {label: string, value: string, kind?: string}[]}} question
 * @returns {Promise<string>} the value of what was chosen; an empty one if nothing was
 */
export function confirm({ title, text, actions }) {
  const id = newId("dialog");
  const dialog = h(
    "dialog",
    { "aria-labelledby": id, class: "ask" },
    h(
      "form",
      { method: "dialog" },
      h("h2", { id }, title),
      h("div", { class: "said" }, text),
      h(
        "div",
        { class: "row end" },
        h("button", { value: "", class: "plain" }, t("cancel")),
        actions.map((a) => h("button", { value: a.value, class: a.kind ?? "" }, a.label)),
      ),
    ),
  );
  document.body.append(dialog);
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      done(dialog.returnValue);
    });
    dialog.showModal();
  });
}

/** A button that copies what `text` gives, and says so. */
export function copyButton(label, text, size = "small") {
  const button = h("button", { type: "button", class: `plain ${size}` }, label);
  const said = h("span", { class: "away", role: "status" });
  button.addEventListener("click", async () => {
    const words = (await copy(text())) ? t("copied") : t("copied.not");
    button.textContent = said.textContent = words;
    setTimeout(() => ((button.textContent = label), (said.textContent = "")), 1500);
  });
  return h("span", {}, button, said);
}

const FIRST = 20_000;
const STEP = 100_000;

/** A long text, of which the beginning is shown, and more on demand: a megabyte at once would stop the page. */
export function longText(text, label) {
  const shown = document.createTextNode("");
  const box = h("pre", { class: "json", tabindex: "0", translate: "no", role: "group", "aria-label": label }, shown);
  let end = 0;
  const more = h("button", { type: "button", class: "plain small", onclick: () => show(end + STEP) });
  function show(until) {
    end = Math.min(text.length, until);
    shown.data = visible(text.slice(0, end));
    more.hidden = end >= text.length;
    more.textContent = t("text.more", { n: text.length - end });
  }
  show(FIRST);
  return h("div", { class: "long" }, box, more);
}
