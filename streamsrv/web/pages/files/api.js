/** Calls of the DICOMweb service (PS3.18), and of `page/server.json`. All URLs are relative to the page. */

/** The base URL of the service, with a slash at its end. */
export const base = new URL("v2/", document.baseURI);
export const JSON_TYPE = "application/dicom+json";

/** An error that the server has explained. `detail` is its sentence, `status` is 0 without an answer. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The reason in a problem document (RFC 9457), or the status line. */
export function reasonIn(text, status) {
  try {
    return JSON.parse(text).detail || `HTTP ${status}`;
  } catch {
    return text.slice(0, 300) || `HTTP ${status}`;
  }
}

async function answered(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "");
  }
  if (answer.status === 401) dispatchEvent(new Event("signed-out"));
  if (!answer.ok) throw new Problem(answer.status, reasonIn(await answer.text(), answer.status));
  return answer;
}

/** The user, the rights, the ways to sign in, and the viewers. */
export async function facts() {
  return (await answered(new URL("page/server.json", document.baseURI))).json();
}

const SESSION = new URL("session", document.baseURI);

/**
 * Begins a session with a key, or with the secret and PIN of a share link.
 * @param {{key: string}|{share: string, pin: string}} proof
 * @returns {Promise<{user: string, study: ?string}>} Raises Problem; its `needs` is "pin" without the PIN.
 */
export async function signIn(proof) {
  const options = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(proof)};
  let answer;
  try {
    answer = await fetch(SESSION, options);
  } catch {
    throw new Problem(0, "");
  }
  const body = await answer.text();
  if (answer.ok) return JSON.parse(body);
  const problem = new Problem(answer.status, reasonIn(body, answer.status));
  try {
    problem.needs = JSON.parse(body).needs;
  } catch {
    // A problem in plain text.
  }
  throw problem;
}

/** Ends the session. @returns {Promise<?string>} the URL at which the issuer ends its own session */
export async function signOut() {
  return (await (await answered(SESSION, {method: "DELETE"})).json()).location;
}

/** The URL that signs in at the issuer and comes back to this place of the page. */
export function issuerUrl() {
  const url = new URL("session/login", document.baseURI);
  url.searchParams.set("return", location.hash);
  return url.href;
}

/** The share links of a study that this user may see. */
export const shares = async (study) => (await answered(resource([study], "shares"))).json();

/** Makes a share link. `expires` is a period such as `7d`. */
export async function share(study, {expires, pin}) {
  const options = {method: "POST", headers: {"Content-Type": "application/json"}};
  options.body = JSON.stringify({expires, pin});
  return (await answered(resource([study], "shares"), options)).json();
}

export const endShare = (study, id) =>
  answered(resource([study], `shares/${encodeURIComponent(id)}`), {method: "DELETE"});

/** The names of standard attributes by tag. Loaded once. */
export const names = once(async () =>
  (await answered(new URL("page/dictionary.json", document.baseURI))).json(),
);

function once(load) {
  let loaded;
  return () =>
    (loaded ??= load().catch((error) => {
      loaded = undefined;
      throw error;
    }));
}

/** The URL of a study, series or instance, with a slash at its end. */
export function urlOf(...uids) {
  const levels = ["studies", "series", "instances"];
  return new URL(
    uids
      .filter(Boolean)
      .map((uid, level) => `${levels[level]}/${encodeURIComponent(uid)}/`)
      .join(""),
    base,
  );
}

/** The URL of a resource below a study, series or instance: `below` is relative. */
export const resource = (uids, below) => new URL(below, urlOf(...uids)).href;

/** The URL of a study, series or instance itself, which has no slash at its end. */
export const linkOf = (...uids) => urlOf(...uids).href.slice(0, -1);

/** The URL of a ZIP archive with all files of a study, series or instance. */
export const zipOf = (...uids) => `${linkOf(...uids)}?accept=application/zip`;

/**
 * Searches (QIDO-RS).
 * @param {string} path relative to the base URL
 * @param {Object<string, string|number>} parameters empty ones are left out
 * @param {AbortSignal} [signal]
 * @returns {Promise<{items: Object[], total: ?number, atLeast: boolean, after: ?string}>} `total` counts the
 *   results of all pages, if the server knows it; `after` is the cursor of the next page.
 */
export async function search(path, parameters, signal) {
  const url = new URL(path, base);
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== "" && value !== null && value !== undefined) url.searchParams.append(name, value);
  }
  const answer = await answered(url, {headers: {Accept: JSON_TYPE}, signal});
  const items = answer.status === 204 ? [] : await answer.json();
  const next = /<([^>]*)>; rel="next"/.exec(answer.headers.get("Link") || "");
  const total = answer.headers.get("X-Total-Count");
  return {
    items,
    total: total === null ? null : Number(total),
    after: next ? new URL(next[1]).searchParams.get("after") : null,
  };
}

/** The number of studies or instances that the server holds. */
export async function count(path) {
  return (await search(path, {limit: 1})).total;
}

/** The metadata of one instance: its dataset as DICOM JSON (PS3.18 Annex F). */
export async function metadata(uids, signal) {
  const answer = await answered(resource(uids, "metadata"), {headers: {Accept: JSON_TYPE}, signal});
  return (await answer.json())[0];
}

/** Deletes a study, series or instance. */
export const remove = (...uids) => answered(linkOf(...uids), {method: "DELETE"});

/** Why a picture cannot be shown. */
export async function reasonOf(url) {
  try {
    await (await answered(url)).body?.cancel();
    return "";
  } catch (error) {
    return error.message;
  }
}
