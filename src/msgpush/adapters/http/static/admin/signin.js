// The form to sign in with: a token, or the company's own provider.
import { BASE } from "./api.js";
import { h } from "./dom.js";
import { t } from "./i18n.js";
import { field } from "./parts.js";
import { forgetToken, signIn } from "./session.js";

/** Go to the provider, which leads back to where one is. */
function goToProvider() {
  forgetToken();
  const url = new URL("admin/sign-in", BASE);
  url.searchParams.set("next", location.pathname + location.hash);
  location.assign(url);
}

/**
 * @param {{oidc: boolean, expired?: boolean, done: () => void}} given
 */
export function signInForm({ oidc, expired, done }) {
  const token = field(
    t("sign.token"),
    h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true }),
    { hint: t("sign.token.hint") },
  );
  const stay = h("input", { type: "checkbox" });
  const button = h("button", {}, t("sign.in"));
  const form = h(
    "form",
    { class: "stack", onsubmit: submit },
    token.element,
    h("label", { class: "check" }, stay, t("sign.stay")),
    button,
  );
  const provider = oidc && [
    h("button", { type: "button", onclick: goToProvider }, t("sign.provider")),
    h("p", { class: "or" }, t("sign.or")),
  ];

  async function submit(event) {
    event.preventDefault();
    const given = token.control.value.trim();
    if (!given) return;
    button.disabled = true;
    token.complain("");
    try {
      await signIn(given, stay.checked);
      token.control.value = "";
      done();
    } catch (problem) {
      token.complain(problem.status === 401 ? t("sign.refused") : problem.passes ? t("away.hint") : problem.detail);
      token.control.focus();
    } finally {
      button.disabled = false;
    }
  }

  return h(
    "div",
    { class: "sign" },
    h("h1", { tabindex: "-1" }, t(expired ? "sign.again" : "sign.title")),
    h("p", { class: "lead" }, t(expired ? "sign.again.lead" : "sign.lead")),
    provider,
    form,
  );
}
