// Settings: what is in force, and where it was said.
import { ask } from "../api.js";
import { fill, h } from "../dom.js";
import { t } from "../i18n.js";
import { badge, field, heading, nothing, refusal, table } from "../parts.js";
import { note } from "../router.js";
import { code } from "../text.js";

const SOURCES = { default: "quiet", environment: "info", flag: "info", file: "info" };

export default async function settings(root, { params, signal, onRecovery }) {
  const search = field(
    t("settings.search"),
    h("input", { type: "search", value: params.q ?? "", autocomplete: "off", spellcheck: "false" }),
    { wide: true },
  );
  const changed = h("input", { type: "checkbox", checked: params.changed === "1" });
  const list = table(t("settings.title"), [
    { label: t("settings.name"), cell: (each) => code(each.name) },
    { label: t("settings.value"), cell: (each) => shown(each) },
    {
      label: t("settings.source"),
      cell: (each) =>
        badge(SOURCES[each.source] ?? "quiet", t(`source.${each.source in SOURCES ? each.source : "default"}`)),
    },
  ]);
  const body = h("div", { class: "card" });
  const found = h("p", { class: "status", role: "status" });
  fill(
    root,
    heading("settings"),
    h(
      "form",
      { class: "row tools", role: "search", onsubmit: (event) => event.preventDefault() },
      search.element,
      h("label", { class: "check" }, changed, t("settings.changed")),
    ),
    found,
    body,
  );
  let all = [];

  function show() {
    const wanted = search.control.value.trim().toLowerCase();
    const rows = all.filter(
      (each) =>
        (!changed.checked || each.source !== "default") &&
        `${each.name} ${JSON.stringify(each.value)}`.toLowerCase().includes(wanted),
    );
    found.textContent = t("settings.found", { n: rows.length, all: all.length });
    list.show(rows);
    fill(body, rows.length ? list.element : nothing(t("settings.none"), t("settings.none.hint")));
  }

  async function load() {
    try {
      all = (await ask("api/v1/settings", { signal })).settings;
    } catch (problem) {
      if (!signal.aborted && !all.length) fill(body, refusal(problem));
      return;
    }
    show();
  }

  function choose() {
    note("settings", { q: search.control.value.trim(), changed: changed.checked ? "1" : "" });
    if (all.length) show();
  }

  search.control.addEventListener("input", choose);
  changed.addEventListener("change", choose);
  onRecovery(load);
  await load();
}

/** A value; of a secret it is only known that there is one. */
function shown({ value, source }) {
  if (value) return code(value, 300);
  return h(
    "span",
    { class: "quiet" },
    t(value === null && source !== "default" ? "settings.hidden" : "settings.unset"),
  );
}
