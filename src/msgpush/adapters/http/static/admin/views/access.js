// Access: what a token may do, and the end of tokens.
import { ask } from "../api.js";
import { fill, h } from "../dom.js";
import { moment, t } from "../i18n.js";
import { badge, confirm, facts, field, heading, longText, options, refusal } from "../parts.js";
import { code, data } from "../text.js";

const KINDS = ["subject", "jti", "issued_before"];

export default function access(root, { signal }) {
  fill(root, heading("access"), h("div", { class: "split even" }, explain(signal), revoke(signal)));
}

function explain(signal) {
  const token = field(
    t("explain.token"),
    h("textarea", {
      class: "mono",
      rows: "6",
      required: true,
      spellcheck: "false",
      autocomplete: "off",
      translate: "no",
    }),
    { hint: t("explain.hint") },
  );
  const answer = h("div", { role: "status" });
  async function submit(event) {
    event.preventDefault();
    const given = token.control.value.trim().replace(/^Bearer\s+/i, "");
    if (!given) return token.control.focus();
    try {
      fill(answer, explained(await ask("api/v1/tokens/explain", { method: "POST", body: { token: given }, signal })));
    } catch (problem) {
      if (!signal.aborted) fill(answer, refusal(problem));
    }
  }
  return h(
    "section",
    { class: "card stack", "aria-labelledby": "explain" },
    h("h2", { id: "explain" }, t("explain.title")),
    h(
      "form",
      { class: "stack", onsubmit: submit },
      token.element,
      h("div", { class: "row" }, h("button", {}, t("explain.do"))),
    ),
    answer,
  );
}

/** What the service says of a token. */
function explained(told) {
  const chips = (names) =>
    names.length
      ? names.map((name) => h("span", { class: "chip" }, data(name, 100)))
      : h("span", { class: "quiet" }, t("explain.nothing"));
  const may = told.accepted && [
    [t("explain.admin"), t(told.admin ? "yes" : "no")],
    [t("explain.subscribe"), chips(told.subscribe)],
    [t("explain.publish"), chips(told.publish)],
    [t("explain.users"), chips(told.users)],
  ];
  return h(
    "div",
    { class: `notice ${told.accepted ? "good" : "bad"}` },
    h(
      "p",
      {},
      badge(
        told.accepted ? "good" : "bad",
        t(told.accepted ? "explain.good" : told.revoked ? "explain.revoked" : "explain.bad"),
      ),
    ),
    told.reason && h("p", {}, data(told.reason, 500)),
    facts([
      [t("explain.subject"), told.subject && data(told.subject)],
      [t("explain.jti"), told.jti && code(told.jti)],
      [t("explain.issued"), told.issued_at && moment(told.issued_at)],
      [t("explain.expires"), told.expires_at && moment(told.expires_at)],
      ...(may || []),
    ]),
    told.said &&
      h(
        "details",
        {},
        h("summary", {}, t(told.accepted ? "explain.said" : "explain.said.unverified")),
        longText(JSON.stringify(told.said, null, 2), t("explain.said")),
      ),
  );
}

function revoke(signal) {
  const kind = field(
    t("revoke.what"),
    h(
      "select",
      {},
      options(
        KINDS.map((name) => [name, t(`revoke.${name}`)]),
        "subject",
      ),
    ),
  );
  const value = field(t("revoke.value"), h("input", { required: true, autocomplete: "off", spellcheck: "false" }), {
    hint: t("revoke.subject.hint"),
  });
  const hint = value.element.querySelector(".hint");
  const answer = h("div", { role: "status" });
  kind.control.addEventListener("change", () => {
    const name = kind.control.value;
    hint.textContent = t(`revoke.${name}.hint`);
    value.control.type = name === "issued_before" ? "datetime-local" : "text";
    value.control.step = "1";
    value.control.value = "";
    value.complain("");
  });
  async function submit(event) {
    event.preventDefault();
    const name = kind.control.value;
    const given = value.control.value.trim();
    if (!given) return value.control.focus();
    const sure = await confirm({
      title: t("revoke.title"),
      text: [h("p", {}, t(`revoke.${name}`), " ", data(given)), h("p", {}, t("revoke.text"))],
      actions: [{ label: t("revoke.do"), value: "yes", kind: "danger" }],
    });
    if (!sure) return;
    const body = { [name]: name === "issued_before" ? new Date(given).toISOString() : given };
    try {
      const told = await ask("api/v1/revocations", { method: "POST", body, signal });
      value.complain("");
      value.control.value = "";
      fill(
        answer,
        h(
          "div",
          { class: "notice good" },
          h("p", {}, h("strong", {}, t("revoke.done"))),
          facts([
            [t(`revoke.${name}`), data(given)],
            [t("revoke.at"), moment(told.at)],
            [t("revoke.until"), moment(told.until)],
          ]),
        ),
      );
    } catch (problem) {
      if (signal.aborted) return;
      const fault = problem.errors?.find((each) => each.pointer === `/${name}`);
      value.complain(fault?.detail ?? "");
      fill(answer, !fault && refusal(problem));
    }
  }
  return h(
    "section",
    { class: "card stack", "aria-labelledby": "revoke" },
    h("h2", { id: "revoke" }, t("revoke.title")),
    h("p", { class: "quiet" }, t("revoke.lead")),
    h(
      "form",
      { class: "stack", onsubmit: submit },
      kind.element,
      value.element,
      h("div", { class: "row" }, h("button", { class: "danger" }, t("revoke.do"))),
    ),
    answer,
  );
}
