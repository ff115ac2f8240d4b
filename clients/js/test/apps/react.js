// An app that shows how far a job is, and listens to another user when it is told to.
import { createElement, StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { useMsgPush } from "../../src/react.ts";

function App() {
  const [user, setUser] = useState("alice");
  const [progress, setProgress] = useState(0);
  const { open } = useMsgPush(globalThis.base, { user }, { progress: (data) => setProgress(`${user} ${data.progress}`) });
  return createElement("button", { onClick: () => setUser("bob") }, `${open ? "open" : "closed"} ${progress}`);
}

const root = createRoot(document.body);
root.render(createElement(StrictMode, null, createElement(App)));
globalThis.leave = () => root.unmount();
