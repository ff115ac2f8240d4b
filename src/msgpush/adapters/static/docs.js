"use strict";

window.addEventListener("load", () => {
  window.SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#api",
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    // Streams never end: trying one here would show nothing.
    supportedSubmitMethods: ["post", "delete", "head"],
  });
});
