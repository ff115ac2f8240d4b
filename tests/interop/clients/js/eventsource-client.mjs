// npm `eventsource-client`: an async iterator.
import { createEventSource } from "eventsource-client";

import { gaveUp, told, url } from "./print.mjs";

for await (const { event, id, data } of createEventSource(url)) told(event, id, data);
gaveUp("closed");
