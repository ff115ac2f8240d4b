"use strict";

// The questions reach this browser when the page is closed, too, once the person has asked for that.
{
  const button = document.querySelector("#push button");
  const state = document.querySelector("#push span");
  const say = (text) => (state.textContent = text);

  if ("serviceWorker" in navigator && "PushManager" in window) document.querySelector("#push").hidden = false;

  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      // Browsers ask the person at a click alone.
      if ((await Notification.requestPermission()) !== "granted") throw new Error("the browser doesn't allow it");
      await navigator.serviceWorker.register("push-worker.js");
      const registration = await navigator.serviceWorker.ready;
      await MsgPushDevice.enablePush(registration, { url: "..", user: "demo", label: "The demo's page" });
      say("Close this page: the next question comes as a notification.");
    } catch (error) {
      button.disabled = false;
      say(`Not now: ${error.message}`);
    }
  });
}
