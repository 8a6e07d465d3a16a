/** Sign-in: the form with a key or the button of the issuer, and the way in by a share link. */

import {issuerUrl, signIn} from "./api.js";
import {h} from "./dom.js";
import {reason} from "./faults.js";
import {t} from "./i18n.js";

/** A line for the fault of a form, which screen readers read. */
const faultLine = () => h("p", {class: "bad", role: "alert", id: "fault"});

/** Password managers keep a key under this name. */
const userField = () => h("input", {type: "text", autocomplete: "username", value: "streamsrv", hidden: true});

/**
 * A field, a button and a line for faults.
 * @param {{name: string, label: string, button: string, attributes: Object, hint: ?string,
 *   send: function(string): Promise<void>, words: function(Error): string}} given
 */
function askFor({name, label, button, attributes, hint, send, words}) {
  const fault = faultLine();
  const input = h("input", {name, required: true, spellcheck: "false", "aria-describedby": "fault", ...attributes});
  const submit = h("button", {class: "main"}, button);
  const form = h(
    "form",
    {
      class: "sign-in-form",
      onsubmit: async (event) => {
        event.preventDefault();
        fault.replaceChildren();
        submit.disabled = true;
        try {
          await send(input.value.trim());
        } catch (error) {
          fault.replaceChildren(words(error));
          input.setAttribute("aria-invalid", "true");
          input.select();
        }
        submit.disabled = false;
      },
    },
    attributes.type === "password" ? userField() : null,
    h("label", {class: "field"}, h("span", {}, label), input),
    hint ? h("p", {class: "dim hint"}, hint) : null,
    fault,
    h("div", {class: "row"}, submit),
  );
  form.focusFirst = () => input.focus();
  return form;
}

/** The window gets `signed-in`. `facts` are those of the server. */
export class SignInForm extends HTMLElement {
  facts = null;
  text = "";

  connectedCallback() {
    const {oidc, possible, reason: hindrance} = this.facts.signIn;
    const form = askFor({
      name: "key",
      label: t("key"),
      button: t("signIn"),
      hint: t("keyHint"),
      attributes: {type: "password", autocomplete: "current-password"},
      words: (error) => (error.status === 401 ? t("keyWrong") : reason(error)),
      send: async (key) => {
        await signIn({key});
        dispatchEvent(new CustomEvent("signed-in"));
      },
    });
    this.replaceChildren(
      h("p", {class: "dim"}, this.text || t("signInText")),
      ...(possible ? [] : [h("p", {class: "bad", role: "alert"}, hindrance)]),
      ...(oidc && possible
        ? [h("a", {class: "button main issuer", href: issuerUrl(), target: this.target}, t("signInIssuer"))]
        : []),
      ...(possible ? [form] : []),
    );
    this.focusFirst = () => (this.querySelector("a.issuer") ?? this.querySelector("input:not([hidden])"))?.focus();
  }

  focusFirst() {}
}

/** Exchanges the secret of a share link for a session. The window gets `signed-in` with the study in `detail`. */
export class ShareOpening extends HTMLElement {
  facts = null;
  secret = "";

  connectedCallback() {
    const {user} = this.facts;
    if (user) this.#ask(user);
    else this.#open("");
  }

  #ask(user) {
    this.#show(
      h("p", {}, t("shareInstead", {user})),
      h("div", {class: "row"}, [
        h("button", {type: "button", class: "main", onclick: () => this.#open("")}, t("shareOpenButton")),
        h("a", {class: "button", href: "#/"}, t("toStart")),
      ]),
    );
  }

  async #open(pin) {
    try {
      const {study} = await signIn({share: this.secret, pin});
      dispatchEvent(new CustomEvent("signed-in", {detail: study}));
    } catch (error) {
      if (pin) throw error;
      if (error.needs === "pin") this.#askForPin();
      else
        this.#show(
          h("p", {class: "bad", role: "alert"}, words(error, "shareGone")),
          h("a", {href: "#/"}, t("toStart")),
        );
    }
  }

  #askForPin() {
    const form = askFor({
      name: "pin",
      label: t("pin"),
      button: t("shareOpenButton"),
      attributes: {inputmode: "numeric", autocomplete: "one-time-code", maxlength: "12"},
      words: (error) => words(error, "pinWrong"),
      send: (pin) => this.#open(pin),
    });
    this.#show(h("p", {class: "dim"}, t("pinText")), form);
    form.focusFirst();
  }

  #show(...content) {
    this.replaceChildren(h("section", {class: "card sign-in"}, h("h1", {}, t("shareOpen")), ...content));
  }
}

const words = (error, key) =>
  error.status === 401 ? t(key) : error.status === 429 ? t("pinMany") : t("error", {reason: reason(error)});

customElements.define("sign-in-form", SignInForm);
customElements.define("share-opening", ShareOpening);
