"use strict";

// What is pushed is shown; a click opens this page, and acknowledges.
importScripts("../static/msgpush-worker.js");
MsgPushWorker.handlePush({ url: "../" });
