import type { ModelSpec } from '../bindings.js'
import type { TrainingData } from './data/types.js'
import { type DeviceInfo, listDevices } from './devices.js'
import { DiTError, invalidOption } from './errors.js'
import type { ImagesEvent, LatentsEvent } from './events.js'
import type { DiTConfig, DiTConfigInput, ScheduleConfig, VaeConfig } from './formats/types.js'
import { type Pixels, type RawImage, splitImages } from './image.js'
import type { Engine } from './jobs.js'
import { type ClassNames, type Label, resolveLabels } from './labels.js'
import {
  type Described,
  describeFresh,
  describeSource,
  openEngine,
  type SourceInfo,
} from './loading.js'
import { type MemoryInfo, type ModelStats, memoryOf, statsOf } from './model_info.js'
import * as options from './options.js'
import { bytesOf, checkTimesteps, Gathered, imageFloats } from './payloads.js'
import { runSample } from './sample_call.js'
import {
  downscale,
  jobRanges,
  type Latents,
  labelFields,
  planSample,
  resolveGuidance,
  resolveGuidanceChannels,
  seedsFrom,
} from './sampling.js'
import { type Saved, saveModel } from './save.js'
import { type StreamEvent, streamEvents } from './streaming.js'
import { modelAttributes, Telemetry, traced, tracedTraining } from './telemetry.js'
import { checkTensor, slice, type Tensor } from './tensor.js'
import type { TrainEvent } from './train/events.js'
import {
  resolveSettings,
  type TrainerOptions,
  type TrainOptions,
  trainerSchema,
  trainSchema,
} from './train/options.js'
import { type TrainHost, train } from './train/train.js'
import { Trainer } from './train/trainer.js'
import { hashWeights } from './weights_hash.js'

/**
 * Arguments of `dit.denoise`.
 *
 * @example
 * const x = { data: new Float32Array(2 * 4 * 32 * 32), shape: [2, 4, 32, 32] }
 * const noise = await dit.denoise({ x, t: [999, 500.5], y: [207, 360], guidance: 4 })
 */
export interface DenoiseOptions {
  /** Noisy latents [n, channels, height, width]. */
  x: Tensor
  /** Timesteps, 0 to T - 1, may be fractional: one for all, or n. */
  t: number | ArrayLike<number>
  /** Labels: one for all, or n. */
  y: Label | readonly Label[]
  /** Scale of classifier-free guidance. Default 1: none. */
  guidance?: number
  /** How many of the first channels are guided. Default: 3 of 4 (as the official code), else `'all'`. */
  guidanceChannels?: number | 'all'
  /** Stops the work; the call rejects with `signal.reason`. */
  signal?: AbortSignal
}

/**
 * A Diffusion Transformer, its VAE if it has one, and the thread that runs them.
 *
 * @example
 * const dit = await DiT.load('facebook/DiT-XL-2-256')
 * const [image] = await dit.sample('golden retriever', { steps: 25, guidance: 4, seed: 1 })
 * await image.toFile('golden-retriever.png')
 * await dit.close()
 */
export class DiT {
  /** The size of the model. */
  readonly config: Readonly<DiTConfig>
  /** The diffusion process it was trained with. */
  readonly schedule: Readonly<ScheduleConfig>
  /** What it runs on: `'cpu'`, `'cuda:0'`. */
  readonly device: string
  /** What it calculates in. */
  readonly precision: options.Precision
  /** Where its weights came from. */
  readonly source: Readonly<SourceInfo>
  /** The size of the VAE; undefined for a model of pixels. */
  readonly vae: Readonly<VaeConfig> | undefined
  readonly #engine: Engine
  readonly #spec: ModelSpec
  readonly #telemetry: Telemetry
  #hash: Promise<string> | undefined
  #classNames: ClassNames
  #training = false
  /** Whether the weights are others than those that were loaded. */
  #trained = false

  private constructor(engine: Engine, { spec, source, classNames }: Described) {
    this.#engine = engine
    this.#spec = spec
    this.config = spec.dit.config
    this.schedule = spec.schedule
    this.vae = spec.vae?.config
    this.device = spec.device
    this.precision = spec.precision
    this.source = source
    this.#classNames = classNames
    this.#telemetry = new Telemetry(this)
  }

  /** Whether its weights are still those that it was opened with. @internal */
  get untouched(): boolean {
    return !this.#trained
  }

  /** Names of the classes by number; empty when the model came without. */
  get classNames(): ClassNames {
    return this.#classNames
  }

  /**
   * Loads a model.
   *
   * @param source A diffusers folder (safetensors or .bin), a .safetensors file with official or
   * diffusers names, an official .pt checkpoint, a Hugging Face id, or 'demo'.
   *
   * Rejects with a DiTError: ERR_DIT_FILE when something cannot be found, read or downloaded,
   * ERR_DIT_FORMAT when a file is damaged or holds no DiT, ERR_DIT_OPTION for a wrong option,
   * ERR_DIT_DEVICE when the device or the precision is not to be had here, ERR_DIT_OOM,
   * ERR_DIT_PLATFORM; with `signal.reason` after an abort.
   *
   * @example
   * const dit = await DiT.load('checkpoints/0400000.pt', { vae: 'stabilityai/sd-vae-ft-ema' })
   */
  static async load(source: string, loadOptions: options.LoadOptions = {}): Promise<DiT> {
    const given = options.check(options.loadSchema, loadOptions)
    return DiT.#open(() => describeSource(source, given), given)
  }

  /**
   * A fresh model, initialised as in the paper (Peebles & Xie 2022, section 4): its last layer and
   * all modulation are zero, so it predicts zero until it is trained.
   *
   * @param config A preset, `'DiT-{S,B,L,XL}/{2,4,8}'` (32×32×4 latents, 1000 classes), or an object:
   * `depth`, `hidden` and `heads` are needed, the rest has the presets' values.
   *
   * Rejects with ERR_DIT_OPTION for sizes that do not go together or a wrong option, ERR_DIT_DEVICE when the
   * device or the precision is not to be had here, ERR_DIT_FILE or ERR_DIT_FORMAT for a VAE that cannot
   * be read, ERR_DIT_OOM, ERR_DIT_PLATFORM; with `signal.reason` after an abort.
   *
   * @example
   * const dit = await DiT.create({ depth: 4, hidden: 128, heads: 4, latentSize: 16, channels: 1, numClasses: 10 })
   */
  static async create(
    config: DiTConfigInput | string,
    createOptions: options.CreateOptions = {},
  ): Promise<DiT> {
    const given = options.check(options.createSchema, createOptions)
    return DiT.#open(() => describeFresh(config, given), given)
  }

  /**
   * The devices of this machine: what can be used, with its memory and precisions, and why not what
   * cannot. GPUs are looked for once a process, in another one, which a damaged driver may hang or end.
   *
   * Rejects with ERR_DIT_PLATFORM when there is no binary for this machine.
   *
   * @example
   * for (const device of await DiT.devices()) {
   *   console.log(device.device, device.available ? device.precisions : device.reason)
   * }
   */
  static async devices(): Promise<DeviceInfo[]> {
    return listDevices()
  }

  static #open(
    describe: () => Promise<Described>,
    given: Pick<options.LoadOptions, 'signal' | 'onProgress'>,
  ): Promise<DiT> {
    return traced('dit.load', { signal: given.signal }, async (span) => {
      const described = await describe()
      span.setAttributes(modelAttributes({ ...described, ...described.spec }))
      return new DiT(await openEngine(described.spec, given), described)
    })
  }

  /**
   * Memory in use now, in bytes. Throws ERR_DIT_CLOSED after `close`.
   *
   * @example
   * console.log(`${dit.memory().total / 2 ** 20} MiB on ${dit.device}`)
   */
  memory(): MemoryInfo {
    return memoryOf(this.#engine.info())
  }

  /**
   * What the model is doing, as of now, and what it did since it was loaded: plain numbers, at no cost.
   * Throws ERR_DIT_CLOSED after `close`.
   *
   * @example
   * const { lanes, maxBatch, waiting } = dit.stats()
   * console.log(`${lanes} of ${maxBatch} lanes in use, ${waiting} images wait`)
   */
  stats(): ModelStats {
    return statsOf(this.#engine.stats())
  }

  /**
   * Makes one image per label. Images of all calls share the model's rounds; what shares them never
   * changes a bit of an image: the same seed, options, device and precision make the same image.
   *
   * @param labels A class number, a class name (exact, then ignoring case, then as one of the
   * comma-separated synonyms of a name), or an embedding; or an array of them.
   *
   * Rejects with ERR_DIT_OPTION or ERR_DIT_SHAPE for a wrong argument, ERR_DIT_BUSY when too many
   * images wait (`maxQueue`), ERR_DIT_DEADLINE, ERR_DIT_NONFINITE when an image comes out as no number,
   * ERR_DIT_CLOSED, ERR_DIT_OOM, ERR_DIT_DEVICE_LOST; with `signal.reason` after
   * an abort.
   *
   * @example
   * const images = await dit.sample([207, 'tabby cat'], { sampler: 'ddim', steps: 50, seed: 7 })
   */
  sample(
    labels: Label | readonly Label[],
    sampleOptions: options.SampleOptions<'latent'> & { output: 'latent' },
  ): Promise<Latents>
  sample(
    labels: Label | readonly Label[],
    sampleOptions?: options.SampleOptions,
  ): Promise<RawImage[]>
  sample(
    labels: Label | readonly Label[],
    sampleOptions?: options.SampleOptions<options.Output>,
  ): Promise<RawImage[] | Latents>
  async sample(
    labels: Label | readonly Label[],
    sampleOptions: options.SampleOptions<options.Output> = {},
  ): Promise<RawImage[] | Latents> {
    const given = options.check(options.sampleSchema, sampleOptions)
    const last = await this.#sample(labels, given)
    return last.type === 'images' ? last.images : last.latents
  }

  /**
   * The same as `sample`, as events: progress after every step, previews every `preview` steps, last
   * the images. Leaving the loop cancels the work. Throws, in the iteration, what `sample` rejects with.
   *
   * @param labels As for `sample`.
   *
   * A slow loop never holds up the model, nor does what it has not seen pile up: it finds the latest
   * progress and the latest preview of each image, and always the images.
   *
   * @example
   * for await (const event of dit.stream([207], { preview: 5 })) {
   *   if (event.type === 'progress') console.log(`${event.step} of ${event.steps}`)
   *   if (event.type === 'preview') await event.image.toFile(`step${event.step}.png`)
   *   if (event.type === 'images') await event.images[0].toFile('out.png')
   * }
   */
  async *stream(
    labels: Label | readonly Label[],
    sampleOptions: options.SampleOptions<options.Output> = {},
  ): AsyncGenerator<StreamEvent, void, undefined> {
    const given = options.check(options.sampleSchema, sampleOptions)
    yield* streamEvents((options) => this.#sample(labels, options), given)
  }

  async #sample(
    labels: Label | readonly Label[],
    given: options.SampleOptions<options.Output>,
  ): Promise<ImagesEvent | LatentsEvent> {
    const plan = planSample(this, labels, given)
    return this.#telemetry.sample(plan, given, () => runSample(this.#engine, plan, given))
  }

  /**
   * One evaluation of the model: the predicted noise, and the variance after it where the model
   * learned one: [n, channels or 2 * channels, height, width].
   *
   * With `guidance`, the guided channels of the noise are those of classifier-free guidance, the
   * others those of the labels (Ho & Salimans 2022, eq. 6, as null + guidance * (label - null)).
   *
   * Rejects with ERR_DIT_SHAPE or ERR_DIT_OPTION for a wrong argument, ERR_DIT_CLOSED, ERR_DIT_OOM; with
   * `signal.reason` after an abort.
   *
   * @example
   * const x = { data: new Float32Array(4 * 32 * 32), shape: [1, 4, 32, 32] }
   * const { data, shape } = await dit.denoise({ x, t: 999, y: 207 })
   */
  async denoise(denoiseOptions: DenoiseOptions): Promise<Tensor> {
    const given = options.check(options.denoiseSchema, denoiseOptions, 'the argument')
    const { config } = this
    const [height, width] = config.latentSize
    const x = checkTensor('x', given.x, ['n', config.channels, height, width])
    const n = x.shape[0] as number
    const t = checkTimesteps(given.t, n, this.schedule.steps)
    const labels = Array.isArray(given.y) ? given.y : Array.from({ length: n }, () => given.y)
    if (labels.length !== n) {
      throw new DiTError('ERR_DIT_SHAPE', `Expected ${n} labels for y but got ${labels.length}`)
    }
    const resolved = resolveLabels(labels, config, this.classNames, 'y')
    const common = {
      guidance: resolveGuidance(given.guidance ?? 1, config),
      guidanceChannels: resolveGuidanceChannels(given.guidanceChannels, config),
    }
    const bytes = 4 * config.channels * (config.learnSigma ? 2 : 1) * height * width
    const out = new Gathered(n)
    await this.#engine.runAll(
      jobRanges(n, bytes).map(([begin, end]) => ({
        start(model) {
          return model.denoise({
            ...common,
            ...labelFields(resolved, begin, end),
            n: end - begin,
            x: slice(x, begin, end),
            timesteps: t.slice(begin, end),
          })
        },
        finish: (done) => out.add(done, begin),
      })),
      given.signal,
    )
    return out.tensor
  }

  /**
   * Latents [n, channels, height, width] to images, by the VAE. The latents are in the model's scale,
   * as `sample` with `output: 'latent'` and `encode` give them; height and width may be any.
   *
   * Rejects with ERR_DIT_SHAPE for other channels than the VAE's, ERR_DIT_OPTION for a model without a
   * VAE, ERR_DIT_CLOSED, ERR_DIT_OOM; with `signal.reason` after an abort.
   *
   * @example
   * const latents = await dit.sample([207, 360], { output: 'latent' })
   * const images = await dit.decode(latents)
   */
  async decode(latents: Tensor, decodeOptions: options.DecodeOptions = {}): Promise<RawImage[]> {
    const { signal } = options.check(options.decodeSchema, decodeOptions)
    const vae = this.#needVae('decode')
    checkTensor('latents', latents, ['n', vae.latentChannels, 'height', 'width'])
    const [n = 0, , height = 0, width = 0] = latents.shape
    const bytes = height * width * downscale(vae) ** 2 * vae.outChannels
    const images = await this.#engine.runAll(
      jobRanges(n, bytes).map(([begin, end]) => ({
        start(model) {
          const part = slice(latents, begin, end)
          return model.decode({ n: end - begin, height, width, latents: part })
        },
        finish: (done) => splitImages(bytesOf(done), new Array(end - begin).fill({})),
      })),
      signal,
    )
    return images.flat()
  }

  /**
   * Images to latents [n, channels, height, width] in the model's scale, by the VAE: the mean of its
   * posterior, or with `sample` a draw from it. Sizes must be multiples of the VAE's factor (8 for the
   * Stable Diffusion VAEs).
   *
   * @param images Pixels (a `RawImage`, or what sharp's `raw()` gives) of one size, or a Tensor
   * [n, channels, height, width] with values from -1 to 1.
   *
   * Rejects with ERR_DIT_SHAPE for a wrong size, ERR_DIT_OPTION for a wrong argument or a model without
   * a VAE, ERR_DIT_CLOSED, ERR_DIT_OOM; with `signal.reason` after an abort.
   *
   * @example
   * const picture = sharp('dog.png').resize(256, 256).removeAlpha().raw()
   * const { data, info } = await picture.toBuffer({ resolveWithObject: true })
   * const latents = await dit.encode({ data, ...info })
   */
  async encode(
    images: Pixels | readonly Pixels[] | Tensor,
    encodeOptions: options.EncodeOptions = {},
  ): Promise<Tensor> {
    const { sample = false, seed, signal } = options.check(options.encodeSchema, encodeOptions)
    if (seed !== undefined && !sample) throw invalidOption('seed', 'nothing without sample', seed)
    const vae = this.#needVae('encode')
    const { n, height, width, floats } = imageFloats(images, vae)
    const seeds = sample ? seedsFrom(seed, n) : undefined
    const latents = new Gathered(n)
    await this.#engine.runAll(
      jobRanges(n, 4 * height * width * vae.inChannels).map(([begin, end]) => ({
        start(model) {
          return model.encode({
            n: end - begin,
            height,
            width,
            images: floats(begin, end),
            seeds: seeds ? new BigUint64Array(seeds.slice(begin, end)) : null,
            moments: false,
          })
        },
        finish: (done) => latents.add(done, begin),
      })),
      signal,
    )
    return latents.tensor
  }

  /**
   * Writes the model: a folder in the diffusers layout, or, when `target` ends in .safetensors, one
   * file with the official names (and without the VAE). A reader never sees a half-written model:
   * everything is written beside the target first. What is loaded from it is the same, bit for bit.
   *
   * @param target A folder, which is made where it is not there, or a file's path.
   *
   * Rejects with ERR_DIT_FILE when it cannot be written, or when the target is a folder that holds
   * something else than a model; ERR_DIT_OPTION for a wrong option, ERR_DIT_CLOSED.
   *
   * @example
   * const dit = await DiT.load('0400000.pt', { vae: 'stabilityai/sd-vae-ft-ema' })
   * await dit.save('my-model')
   */
  async save(target: string, saveOptions: options.SaveOptions = {}): Promise<void> {
    const given = options.check(options.saveSchema, saveOptions)
    if (typeof target !== 'string' || target === '') throw invalidOption('target', 'a path', target)
    await saveModel(this.#engine, this.#saved(), target, given)
  }

  #saved(): Saved {
    return { spec: this.#spec, classNames: this.classNames, trained: this.#trained }
  }

  /**
   * SHA-256, in hexadecimal, of what the model is: its sizes, its diffusion process and all tensors, those
   * of the VAE, too, as they are stored. Two models with the same hash make the same images of the same
   * options, on one device and in one precision; the same weights under official and diffusers names
   * have the same one. Files are read the first time it is asked for, in pieces (2 GB: some seconds), so
   * ask before they are replaced; of weights that were trained since, or are fresh, it is computed from
   * a temporary copy.
   *
   * Rejects with ERR_DIT_FILE when a file cannot be read.
   *
   * @example
   * const request = { label: 207, seed: 7, steps: 25 }
   * const key = `${await dit.weightsHash()} ${dit.device} ${dit.precision} ${JSON.stringify(request)}`
   */
  weightsHash(): Promise<string> {
    if (this.#trained) return hashWeights(this.#engine, this.#saved())
    this.#hash ??= hashWeights(this.#engine, this.#saved()).catch((error) => {
      this.#hash = undefined
      throw error
    })
    return this.#hash
  }

  /**
   * Trains the model, and tells of every step. Leaving the loop ends the training; where there is an
   * `out`, a checkpoint is saved then. Sampling, also meanwhile and after it, uses the averaged (EMA)
   * weights; the memory of the training is freed at its end. Another training starts from the weights that were loaded, not from what this one makes of them.
   *
   * Only events of the type 'step' have losses; see `TrainEvent` for the others.
   *
   * @param data A folder of images (a subfolder for each class), of features, or of MNIST's idx files;
   * or items `{ image, label }`, in an array, an iterable or an async one. See `TrainingData`.
   *
   * Throws, in the iteration, ERR_DIT_OPTION for wrong options and for those that differ from a
   * checkpoint's, ERR_DIT_FILE or ERR_DIT_FORMAT for data or checkpoints that cannot be read or written,
   * ERR_DIT_NONFINITE when too many steps in a row were skipped and there is no way back, ERR_DIT_BUSY
   * while the model has another trainer, ERR_DIT_OOM when not even one row fits, ERR_DIT_CLOSED.
   *
   * @example
   * for await (const event of dit.train('photos', { steps: 10_000, out: 'runs/photos', flip: true })) {
   *   if (event.type === 'step') console.log(event.step, event.loss, event.imagesPerSecond)
   * }
   */
  async *train(
    data: TrainingData,
    trainOptions: TrainOptions = {},
  ): AsyncGenerator<TrainEvent, void, undefined> {
    const given = options.check(trainSchema, trainOptions)
    const host = this.#startTraining()
    try {
      yield* tracedTraining(this, train(host, data, given))
    } finally {
      await host.release()
    }
  }

  /**
   * The same as `train`, step by step: the caller brings the rows of every step.
   *
   * Rejects with ERR_DIT_OPTION, ERR_DIT_BUSY while the model has another trainer, ERR_DIT_OOM when not
   * even one row fits, ERR_DIT_CLOSED.
   *
   * @example
   * const trainer = await dit.trainer({ batchSize: 32, lr: 2e-4 })
   * const x = { data: new Float32Array(3 * 4 * 32 * 32), shape: [3, 4, 32, 32] }
   * const { loss } = await trainer.step({ x, y: [0, 1, 2] })
   * await trainer.save('checkpoint')
   * await trainer.close()
   */
  async trainer(trainerOptions: TrainerOptions = {}): Promise<Trainer> {
    const given = options.check(trainerSchema, trainerOptions)
    const settings = resolveSettings(given, this.config)
    const host = this.#startTraining()
    try {
      return await Trainer.open(host, given, settings)
    } catch (error) {
      await host.release()
      throw error
    }
  }

  #startTraining(): TrainHost {
    if (this.#training) {
      throw new DiTError(
        'ERR_DIT_BUSY',
        'The model is in training: end that first (trainer.close(), or leave the loop of dit.train)',
      )
    }
    this.#training = true
    const { config, schedule: diffusion, precision } = this
    const dit = this
    return {
      engine: this.#engine,
      model: {
        config,
        diffusion,
        precision,
        get classNames() {
          return dit.classNames
        },
      },
      vae: this.vae,
      sample: (labels, sampleOptions) => this.sample(labels, sampleOptions),
      save: (file) => this.save(file),
      nameClasses: (names) => {
        this.#classNames = { ...names }
      },
      began: () => {
        this.#trained = true
      },
      release: () => this.#endTraining(),
    }
  }

  /** Frees the trainer; the model keeps the averaged weights. */
  async #endTraining(): Promise<void> {
    try {
      await this.#engine.run((model) => model.release())
    } catch (error) {
      // The memory of a closed model is free already.
      if (!(error instanceof DiTError && error.code === 'ERR_DIT_CLOSED')) throw error
    } finally {
      this.#training = false
    }
  }

  /**
   * Ends the work under way, whose calls reject with ERR_DIT_CLOSED, and frees the memory. May be
   * called at any time, and more than once; it never rejects for that.
   *
   * @example
   * const dit = await DiT.load('demo')
   * await dit.sample(0).finally(() => dit.close())
   */
  close(): Promise<void> {
    this.#telemetry.close()
    return this.#engine.close()
  }

  /**
   * The same as `close`, for runtimes that have `await using`.
   *
   * @example
   * await using dit = await DiT.load('demo')
   */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #needVae(what: string): VaeConfig {
    if (this.vae) return this.vae
    throw new DiTError(
      'ERR_DIT_OPTION',
      `${what} needs a VAE, and this model came without one. Load it with the option vae`,
    )
  }
}
