"use strict";

const page = document.getElementById("swagger-ui");
// Earlier versions kept the key that was typed in here.
localStorage.removeItem("authorized");
SwaggerUIBundle({
  url: page.dataset.description,
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true,
  tryItOutEnabled: true,
  persistAuthorization: false,
  displayRequestDuration: true,
  defaultModelsExpandDepth: -1,
  // The default would send the description to a validator on the network.
  validatorUrl: null,
});
