/** Types of client.js. */

export type Bytes = Blob | ArrayBuffer | ArrayBufferView;

/** A request by the API's own names; what is left out has the server's default. */
export interface Fields {
  init_image: Bytes;
  prompt: string;
  negative_prompt?: string;
  /** White is made anew, black is kept. */
  mask?: Bytes;
  width?: number;
  height?: number;
  image_strength?: number;
  cfg_scale?: number;
  clip_guidance_preset?: string;
  sampler?: string;
  /** 0 or left out: a random one. */
  seed?: number;
  steps?: number;
  style_preset?: string;
  resize_mode?: "crop" | "stretch" | "pad";
  /** Send a small picture with every progress event. */
  previews?: boolean;
  [name: string]: Bytes | string | number | boolean | null | undefined;
}

export interface Progress {
  type: "progress";
  step: number;
  steps: number;
  evaluation: number;
  evaluations: number;
  queuePosition: number;
  stage?: "queued" | "encoding" | "denoising" | "decoding";
  /** As the server predicts it. */
  seconds_left?: number;
  preview?: Blob;
  [name: string]: unknown;
}

export interface Retry {
  type: "retry";
  seconds: number;
  reason: string;
  status: number;
}

export interface Result {
  type: "result";
  /** The bytes that came: a PNG. */
  picture: Blob;
  seed: number;
  /** The safety check had the picture blurred. */
  filtered: boolean;
  status: number;
  requestId: string;
  model: string;
  /** Fields that the server does not know. */
  ignored: string[];
  /** The answer to an earlier request with the same Idempotency-Key. */
  replayed: boolean;
  creditsCharged: string | null;
  creditsRemaining: string | null;
}

export interface Account {
  name: string;
  credits: { balance: string; reserved: string } | null;
  limits: { rate: string | null; concurrency: number | null };
}

export interface ClientOptions {
  /** Default: the server that this module came from. What follows `?` or `#` is left out. */
  url?: string | URL;
  key?: string;
  /** Tries after the first, but for what `patience` bounds; 3. With 0 nothing is asked again. */
  retries?: number;
  /** Seconds for which a Retry-After is honoured; 120. */
  maxWait?: number;
  /** Seconds for which a refusal with a Retry-After (503, 429, 409) is waited out, however often; 600. */
  patience?: number;
  /** Seconds without a byte after which a stream counts as lost; 30. */
  silence?: number;
}

export interface RequestOptions {
  signal?: AbortSignal;
  idempotencyKey?: string;
  /** A new id, such as newKey() makes, by which the run outlives its connection for a while. */
  runId?: string;
}

export interface CallOptions extends RequestOptions {
  onProgress?: (event: Progress) => void;
  onRetry?: (event: Retry) => void;
}

export declare class ImageToImageError extends Error {
  /** HTTP status, of a stream that its last event tells; 0 where no answer came. */
  status: number;
  retryAfter: number | null;
  /** The connection was lost, or never was. */
  lost: boolean;
  /** The run itself ended so: told by the last event of a stream. */
  ended: boolean;
  requestId: string;
  fields: Record<string, string>;
  get mayRetry(): boolean;
}

export declare class ImageToImage {
  constructor(options?: ClientOptions);
  imageToImage(fields: Fields, options?: CallOptions): Promise<Result>;
  stream(fields: Fields, options?: RequestOptions): AsyncGenerator<Progress | Retry | Result>;
  /** What happens to a run that was begun with this id; rejects with status 404 if it is gone. */
  watch(runId: string, options?: { signal?: AbortSignal; patience?: number }): AsyncGenerator<Progress | Retry | Result>;
  /** Unless it was finished, a `stream` of this client that makes the run rejects with status 409. */
  cancel(runId: string): Promise<"cancelled" | "finished" | "unknown">;
  account(options?: { signal?: AbortSignal }): Promise<Account>;
}

export declare function imageToImage(
  fields: Fields,
  options?: ClientOptions & CallOptions,
): Promise<Result>;
export declare function randomSeed(): number;
export declare function newKey(): string;
export declare function serverEvents(
  body: ReadableStream<Uint8Array>,
  silence?: number,
  signal?: AbortSignal,
): AsyncGenerator<{ name: string; data: string }>;
