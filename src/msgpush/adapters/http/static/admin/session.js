// Who is signed in, and how one can be.
import { ask, Problem, useToken } from "./api.js";
import { keep, kept } from "./memory.js";

let session = { mode: null, subject: null, oidc: false };
export const current = () => session;

/** Ask the service who this is. Throws `Problem` with 401: nobody yet, or nobody any longer. */
export async function findOut(quiet = true) {
  try {
    session = await ask("admin/session", { quiet });
    if (session.mode === null) throw new Problem(401, "");
  } catch (problem) {
    if (problem.status === 401 && token) session = { ...session, oidc: await offersProvider() };
    throw problem;
  }
}

/** Whether one can sign in through a provider; asked as nobody, since the token that there is was refused. */
async function offersProvider() {
  const told = await ask("admin/session", { quiet: true, anonymous: true }).catch(() => null);
  return told?.oidc ?? session.oidc;
}

let token = kept("token") ?? "";
useToken(token);

/** Sign in with a token; it stays in memory, or in this tab's sessionStorage. */
export async function signIn(given, stay) {
  const before = token;
  useToken((token = given));
  try {
    await findOut();
  } catch (problem) {
    useToken((token = before));
    throw problem;
  }
  keep("token", stay ? given : null);
}

/** Have no token any more, such as one that was refused: it would count before a session. */
export function forgetToken() {
  useToken((token = ""));
  keep("token", null);
}

/** Whether there is anything to sign out of. */
export const signedIn = () => session.mode === "token" || session.mode === "oidc";

export async function signOut() {
  const { mode } = session;
  forgetToken();
  keep("draft", null);
  if (mode === "oidc") await ask("admin/sign-out", { method: "POST", body: {}, quiet: true }).catch(() => {});
  session = { ...session, mode: null, subject: null };
}
