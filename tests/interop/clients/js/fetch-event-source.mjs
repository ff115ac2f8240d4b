// npm `@microsoft/fetch-event-source`, as docs/clients.md has it.
import { fetchEventSource } from "@microsoft/fetch-event-source";

import { gaveUp, told, url } from "./print.mjs";

class Over extends Error {}

fetchEventSource(url, {
  openWhenHidden: true,
  async onopen(response) {
    const { status } = response;
    if (status === 204 || (status >= 400 && status < 500 && status !== 429)) throw new Over(`the answer is ${status}`);
    if (status !== 200) throw new Error(`the answer is ${status}`);
  },
  onmessage({ event, id, data }) {
    told(event, id, data);
  },
  onclose() {
    throw new Error("closed by the server");
  },
  onerror(error) {
    if (error instanceof Over) throw error;
  },
}).catch(gaveUp);
