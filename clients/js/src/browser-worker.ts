// The build for service workers without a bundler: importScripts(".../static/msgpush-worker.js").
import { handlePush } from "./push-worker.js";
import { disablePush, enablePush } from "./push.js";

(globalThis as { MsgPushWorker?: object }).MsgPushWorker = { handlePush, enablePush, disablePush };
