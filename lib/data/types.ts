/** One item of training data that the caller makes: see `TrainingData`. */
export interface TrainingItem {
  /**
   * The image: numbers [channels, height, width] from -1 to 1 (pixels), or in the model's scale
   * (latents); or an encoded image (JPEG, PNG, WebP) as bytes, or the path of one.
   */
  image: Float32Array | Uint8Array | string
  /** The class: its number, or its name where the model has names. */
  label: number | string
}

/**
 * What a model can be trained on:
 *
 * - a folder with one subfolder a class (the classes are the names of the subfolders, in order of
 *   their code points) with JPEG, PNG and WebP files in it, at any depth;
 * - a folder that `dit features` wrote: posteriors of a VAE, from which every epoch draws anew;
 * - a folder with the idx files of MNIST or Fashion-MNIST (`train-images-idx3-ubyte`, with or without
 *   `.gz`);
 * - an array of items, of which every epoch has its own order;
 * - any other iterable, or an async one, of items, which are taken as they come, once;
 * - a function that gives one that starts after `position` items: then a resumed training need not
 *   read again what it has seen.
 */
export type TrainingData =
  | string
  | Iterable<TrainingItem>
  | AsyncIterable<TrainingItem>
  | ((position: number) => Iterable<TrainingItem> | AsyncIterable<TrainingItem>)

/** A file that could not be used. */
export interface SkippedItem {
  /** The file's path, or the item's number. */
  item: string
  /** What is wrong with it. */
  reason: string
}

/** The rows of one step on their way to the trainer. @internal */
export interface DataBatch {
  /** Numbers [n, channels, height, width]: pixels from -1 to 1, latents, or means of latents. */
  x: Float32Array
  /** [n, channels, height, width]: deviations of latents, of features only. */
  deviation: Float32Array | null
  labels: Int32Array
  /** Items taken since the beginning of the training, those of this batch included. */
  position: number
  /** Seconds for which this batch was not ready when it was asked for. */
  waited: number
  /** Items passed over since the last batch. */
  skipped: SkippedItem[]
}

/** Training data, opened. @internal */
export interface OpenData {
  /** 'images': pixels of `shape`; 'latents': what the model is trained on as it is; 'features': means and deviations in the VAE's own scale. */
  readonly kind: 'images' | 'latents' | 'features'
  /** Items of an epoch; undefined where that is not known. */
  readonly length: number | undefined
  /** [channels, height, width] of every item. */
  readonly shape: readonly [channels: number, height: number, width: number]
  /** Of features: (draw - shift) * scale is the model's scale. */
  readonly scale: number
  readonly shift: number
  readonly numClasses: number | undefined
  /** Names of the classes by number; empty where there are none. */
  readonly classNames: readonly string[]
  /** What a resumed training must find again: kind, length, shape, classes, a hash of the file names. */
  readonly fingerprint: Readonly<Record<string, string | number | boolean>>
  /**
   * Batches without end: epoch after epoch where the length is known, each in an order that follows
   * from (seed, epoch), from item number `position` on. The same (seed, position) give the same
   * batches, bit for bit, however many workers decode. The generator ends where an iterable ends; a
   * last, smaller batch is given then.
   */
  batches(options: BatchOptions): AsyncGenerator<DataBatch, void, undefined>
  /** Stops workers and closes files. */
  close(): Promise<void>
}

/** @internal */
export interface BatchOptions {
  batchSize: number
  seed: bigint
  /** Items to begin after. */
  position: number
  /** Mirror each image with probability one half; of features, take the mirrored copy where there is one. */
  flip: boolean
  signal?: AbortSignal
}

/** @internal */
export interface OpenDataOptions {
  /** What the model takes: pixels, or latents of a VAE whose images are `downscale` times larger. */
  model: {
    channels: number
    latentSize: readonly [height: number, width: number]
    numClasses: number
    classNames: Readonly<Record<number, string>>
    /** Undefined: the model makes pixels. */
    vae:
      | { inChannels: number; downscale: number; scalingFactor: number; shiftFactor: number }
      | undefined
  }
  /** Decoding threads. Default: as many as the machine has processors, at most 8. */
  workers?: number
  /** What a damaged file does: is reported and passed over, or ends the training. */
  onBadItem: 'skip' | 'error'
  signal?: AbortSignal
}
