// Calls the npm package stability-ai, whose address is a constant: an interceptor on the axios that
// it uses sends its requests to the address in the first argument, and lets none go elsewhere.
const [address, key, image, mask] = process.argv.slice(2);
const axios = require("axios").default;
const StabilityAI = require("stability-ai");

const ITS_ADDRESS = "https://api.stability.ai/";
axios.interceptors.request.use((config) => {
  if (!config.url.startsWith(ITS_ADDRESS)) throw new Error(`not rewritten: ${config.url}`);
  return { ...config, url: `${address}/${config.url.slice(ITS_ADDRESS.length)}`, proxy: false };
});

async function main() {
  const client = new StabilityAI.default(key);
  const engine = "stable-diffusion-v1-6";
  const prompts = [
    { text: "a red circle", weight: 1 },
    { text: "a square", weight: -1 },
  ];
  const quick = { steps: 10, seed: 7, samples: 2 };
  const told = {
    account: await client.v1.user.account(),
    balance: await client.v1.user.balance(),
    engines: await client.v1.engines.list(),
    drawn: await client.v1.generation.textToImage(engine, prompts, {
      ...quick, width: 320, height: 320,
    }),
    changed: await client.v1.generation.imageToImage(engine, prompts, image, {
      ...quick, mode: "STEP_SCHEDULE", step_schedule_start: 0.1,
    }),
    masked: await client.v1.generation.imageToImageMasking(engine, prompts, image, {
      ...quick, mask_source: "MASK_IMAGE_WHITE", mask_image: mask,
    }),
  };
  try {
    await client.v1.generation.imageToImage(engine, prompts, image, { steps: 5 });
  } catch (error) {
    told.refused = `${error.message} ${JSON.stringify(error)}`;
  }
  process.stdout.write(JSON.stringify(told));
}

main().catch((error) => {
  process.stderr.write(`${error.stack} ${JSON.stringify(error)}`);
  process.exit(1);
});
