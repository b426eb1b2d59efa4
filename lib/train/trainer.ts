// Training step by step: what `dit.trainer` gives, and what `dit.train` drives.

import type { AccumulateRequest, TrainerInfo, TrainerRequest } from '../../bindings.js'
import { DiTError, invalidOption, show } from '../errors.js'
import type { Engine } from '../jobs.js'
import { type Label, resolveLabels } from '../labels.js'
import { checkTimesteps } from '../payloads.js'
import { jobRanges } from '../sampling.js'
import { checkTensor, type Tensor } from '../tensor.js'
import { readState, readTensors, writeCheckpoint } from './checkpoint.js'
import { resolveSettings, type TrainingSettings, type TrainOptions } from './options.js'
import { averaging, learningRate } from './schedules.js'
import { UsualNorm } from './spikes.js'
import { checkUnchanged, newState, type TrainedModel, type TrainerState } from './state.js'

/**
 * The rows of one step. What is random follows from the seed, the step and the row.
 *
 * @example
 * const trainer = await dit.trainer({ batchSize: 2 })
 * const x = { data: new Float32Array(2 * 4 * 32 * 32), shape: [2, 4, 32, 32] }
 * await trainer.step({ x, y: [3, 7], t: [10, 900], drop: [false, true] })
 */
export interface StepInput {
  /** What the model is to make: [n, channels, height, width], pixels from -1 to 1 or latents. */
  x: Tensor
  /** Class numbers or names: one for all, or n. */
  y: Label | readonly Label[]
  /** Timesteps, integers from 0 to T - 1: one for all, or n. Default: random. */
  t?: number | ArrayLike<number>
  /** The noise of each row, as `x`. Default: random. */
  noise?: Tensor
  /** Whether the null class takes the label's place: n. Default: random, by `labelDropout`. */
  drop?: ArrayLike<boolean | number>
}

const stepNames: readonly string[] = ['x', 'y', 't', 'noise', 'drop'] satisfies (keyof StepInput)[]

/** What a step did. */
export interface StepMetrics {
  /** Steps applied so far, this one included. */
  step: number
  /** Skipped are steps whose loss or gradient is not finite, and those with a spike in the gradient. */
  outcome: 'applied' | 'nonFinite' | 'spike'
  /** Mean over the rows: `mse` and `vb` together. */
  loss: number
  /** Mean squared error of the predicted noise. */
  mse: number
  /** The variance's bound, in bits per number; 0 for the loss 'mse'. */
  vb: number
  /** The loss of the rows in each quarter of the timesteps; NaN where there are none. */
  quartileLoss: number[]
  /** The learning rate of this step. */
  lr: number
  /** L2 norm of the gradient, before it is clipped. */
  gradNorm: number
  /** Rows of this step. */
  rows: number
  /** Time of this step; in the events of `dit.train` the mean since the last one, with waiting for data. */
  secondsPerStep: number
  /** Rows per second, in that time. */
  imagesPerSecond: number
  /** Steps skipped since the beginning. */
  skippedSteps: number
}

/** The model that is trained, as the class `DiT` has it. @internal */
export interface TrainerHost {
  readonly engine: Engine
  readonly model: TrainedModel
  /** Called when the native part has made a trainer. */
  began(): void
  /** Called once, when the training has ended: frees the native part's trainer. */
  release(): Promise<void>
}

/** Rows as the native part takes them. @internal */
export type TrainingRows = Omit<AccumulateRequest, 'firstRow' | 'globalBatch'>

/** What a training goes on from. @internal */
export interface Start {
  readonly folder: string
  readonly state: TrainerState
}

/**
 * A model in training, one step at a time. Sampling from the model meanwhile uses the averaged (EMA)
 * weights, and so does saving it.
 *
 * @example
 * const trainer = await dit.trainer({ lr: 2e-4, emaDecay: 0.999 })
 * for (let i = 0; i < 10_000; i++) {
 *   const x = { data: new Float32Array(8 * 4 * 32 * 32), shape: [8, 4, 32, 32] } // your rows
 *   const { step, loss } = await trainer.step({ x, y: 3 })
 *   if (step % 1000 === 0) await trainer.save('checkpoint')
 * }
 * await trainer.close()
 */
export class Trainer {
  readonly #host: TrainerHost
  readonly #given: TrainOptions
  #settings: TrainingSettings
  #info: TrainerInfo
  #step: number
  #lrFactor: number
  #norms: UsualNorm
  #skippedSteps: number
  #skippedInRow: number
  #underWay: Promise<unknown> | undefined
  #closed: Promise<void> | undefined

  private constructor(
    host: TrainerHost,
    given: TrainOptions,
    settings: TrainingSettings,
    info: TrainerInfo,
    state?: TrainerState,
  ) {
    this.#host = host
    this.#given = given
    this.#settings = exactly(settings, info)
    this.#info = info
    this.#step = info.step
    this.#lrFactor = state?.lrFactor ?? 1
    this.#norms = new UsualNorm(state?.norms)
    this.#skippedSteps = state?.skippedSteps ?? 0
    this.#skippedInRow = state?.skippedInRow ?? 0
  }

  /** @internal */
  static async open(
    host: TrainerHost,
    given: TrainOptions,
    settings: TrainingSettings,
    start?: Start,
  ): Promise<Trainer> {
    const info = await begin(host, settings, start)
    return new Trainer(host, given, settings, info, start?.state)
  }

  /** Steps applied so far. */
  get steps(): number {
    return this.#step
  }

  /** Rows that go through the model at once, and the memory that training takes, in bytes. */
  get info(): { batchSize: number; parameterBytes: number; activationBytes: number } {
    const { microBatch: batchSize, parameterBytes, activationBytes } = this.#info
    return { batchSize, parameterBytes, activationBytes }
  }

  /**
   * One step of AdamW on the rows given. A step whose loss or gradient is not finite, or whose gradient
   * is a spike, changes nothing; `outcome` tells.
   *
   * Rejects with ERR_DIT_SHAPE or ERR_DIT_OPTION for wrong arguments, ERR_DIT_BUSY while another step or
   * a save is under way, ERR_DIT_CLOSED.
   *
   * @example
   * const x = { data: new Float32Array(3 * 4 * 32 * 32), shape: [3, 4, 32, 32] }
   * const { loss, gradNorm, outcome } = await trainer.step({ x, y: [3, 7, 1] })
   */
  async step(input: StepInput): Promise<StepMetrics> {
    const rows = this.#checkRows(input)
    return this.advance(rows)
  }

  /**
   * Writes a checkpoint: a folder that `resume` and `DiT.load` take. A checkpoint that is there already
   * is replaced.
   *
   * Rejects with ERR_DIT_FILE when it cannot be written, or when the folder holds something else;
   * ERR_DIT_BUSY while a step is under way, ERR_DIT_CLOSED.
   *
   * @example
   * await trainer.save('runs/mine/checkpoint')
   */
  async save(folder: string): Promise<void> {
    if (typeof folder !== 'string' || folder === '') throw invalidOption('folder', 'a path', folder)
    await this.exclusive(() => {
      return writeCheckpoint(folder, this.#host.engine, this.#host.model, this.state(null))
    })
  }

  /**
   * Goes on from a checkpoint, of `trainer.save` or `dit.train`: the steps that follow are those that
   * would have followed there, bit for bit. Options that were not given to `dit.trainer` are as they
   * were.
   *
   * Rejects with ERR_DIT_FILE or ERR_DIT_FORMAT when it cannot be read, ERR_DIT_OPTION, which names them,
   * when options are not those it was made with; ERR_DIT_BUSY while a step is under way, ERR_DIT_CLOSED.
   *
   * @example
   * const trainer = await dit.trainer()
   * await trainer.resume('runs/mine/checkpoint')
   */
  async resume(folder: string): Promise<void> {
    if (typeof folder !== 'string' || folder === '') throw invalidOption('folder', 'a path', folder)
    await this.exclusive(async () => {
      const state = await readState(folder)
      const { model } = this.#host
      const settings = resolveSettings(this.#given, model.config, state.settings)
      checkUnchanged(folder, fromState(state), { settings, model })
      await this.#restore({ folder, state }, settings)
    })
  }

  /**
   * Ends the training, after the step or save that is under way, and frees its memory; the model keeps
   * the averaged weights. Another trainer may follow, which starts from the weights that were loaded, or
   * resumes. May be called more than once.
   *
   * @example
   * await trainer.close()
   * const images = await dit.sample(0) // by the averaged weights
   */
  close(): Promise<void> {
    this.#closed ??= this.#end()
    return this.#closed
  }

  async #end(): Promise<void> {
    await this.#underWay?.catch(() => {}) // whoever asked for it is told
    await this.#host.release()
  }

  /**
   * The same as `close`, for runtimes that have `await using`.
   *
   * @example
   * await using trainer = await dit.trainer()
   */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** @internal */
  get skippedInRow(): number {
    return this.#skippedInRow
  }

  /** @internal */
  get lrFactor(): number {
    return this.#lrFactor
  }

  /** What a checkpoint of now says. @internal */
  state(data: TrainerState['data']): TrainerState {
    const { config, diffusion, precision, classNames } = this.#host.model
    return newState({
      step: this.#step,
      settings: this.#settings,
      lrFactor: this.#lrFactor,
      norms: [...this.#norms.values],
      skippedSteps: this.#skippedSteps,
      skippedInRow: this.#skippedInRow,
      model: {
        precision,
        config: { ...config },
        diffusion: { ...diffusion },
        classNames: { ...classNames },
      },
      data,
    })
  }

  /** Back to a checkpoint of this training, from where it goes on at a lower rate. @internal */
  async rollBack(start: Start): Promise<void> {
    const skippedSteps = this.#skippedSteps
    const lrFactor = this.#lrFactor * this.#settings.rollbackLrFactor
    await this.exclusive(() => this.#restore(start, this.#settings))
    this.#lrFactor = lrFactor
    this.#skippedSteps = skippedSteps
    this.#skippedInRow = 0
  }

  async #restore(start: Start, settings: TrainingSettings): Promise<void> {
    this.#info = await begin(this.#host, settings, start)
    const { state } = start
    this.#settings = exactly(settings, this.#info)
    this.#step = this.#info.step
    this.#lrFactor = state.lrFactor
    this.#norms = new UsualNorm(state.norms)
    this.#skippedSteps = state.skippedSteps
    this.#skippedInRow = state.skippedInRow
  }

  /**
   * A step with rows that were checked. After an abort the trainer may save, but make no more steps.
   *
   * @internal
   */
  advance(rows: TrainingRows, signal?: AbortSignal): Promise<StepMetrics> {
    return this.exclusive(async () => {
      const begin = performance.now()
      const { engine } = this.#host
      // One job after the other: one that fails makes the native part forget the rows before it, and
      // none may follow then.
      for (const request of this.#requests(rows)) {
        await engine.run((model) => model.accumulate(request()), { signal })
      }
      const settings = this.#settings
      const rate = learningRate(settings, this.#given.schedule, this.#step + 1)
      const lr = rate * this.#lrFactor
      const emaDecay = averaging(settings, this.#step + 1)
      const { clipNorm, spikeFactor } = settings
      const skipAbove = spikeFactor === 0 ? 0 : this.#norms.limit(spikeFactor)
      const request = { lr, emaDecay, clipNorm, skipAbove }
      const { step: result } = await engine.run((model) => model.apply(request))
      if (result === null) throw new DiTError('ERR_DIT_INTERNAL', 'the step gave no result')
      if (result.outcome === 'applied') {
        this.#step = result.step
        this.#skippedInRow = 0
        this.#norms.add(result.gradNorm)
      } else {
        this.#skippedSteps++
        this.#skippedInRow++
      }
      const seconds = (performance.now() - begin) / 1000
      const { outcome, loss, mse, vb, gradNorm } = result
      return {
        step: this.#step,
        outcome,
        loss,
        mse,
        vb,
        quartileLoss: [...result.quartileLoss],
        lr,
        gradNorm,
        rows: rows.n,
        secondsPerStep: seconds,
        imagesPerSecond: rows.n / seconds,
        skippedSteps: this.#skippedSteps,
      }
    })
  }

  /** One thing at a time. @internal */
  async exclusive<T>(work: () => Promise<T>): Promise<T> {
    if (this.#closed) throw new DiTError('ERR_DIT_CLOSED', 'The trainer was closed; make another')
    if (this.#underWay) {
      throw new DiTError('ERR_DIT_BUSY', 'The trainer is at work: await what it does before this')
    }
    const underWay = work()
    this.#underWay = underWay
    try {
      return await underWay
    } finally {
      this.#underWay = undefined
    }
  }

  #checkRows(input: StepInput): TrainingRows {
    if (typeof input !== 'object' || input === null) {
      throw invalidOption('the input of a step', 'an object { x, y }', input)
    }
    const unknown = Object.keys(input).find((name) => !stepNames.includes(name))
    if (unknown !== undefined) {
      throw new DiTError(
        'ERR_DIT_OPTION',
        `A step has no ${show(unknown)}, only ${stepNames.join(', ')}`,
      )
    }
    const { x, y, t, noise, drop } = input
    const { config, classNames, diffusion } = this.#host.model
    const [height, width] = config.latentSize
    const shape = ['n', config.channels, height, width]
    checkTensor('x', x, shape)
    const n = x.shape[0] as number
    if (noise !== undefined) checkTensor('noise', noise, [n, ...shape.slice(1)])
    const labels = Array.isArray(y) ? y : Array.from({ length: n }, () => y)
    checkLength('labels for y', labels.length, n)
    const { classes, vectors } = resolveLabels(labels, config, classNames, 'y')
    if (vectors.some((vector) => vector !== null)) {
      throw invalidOption('y', 'class numbers or names', vectors.find(Boolean))
    }
    if (drop !== undefined) {
      checkLength('values for drop', drop.length, n)
      if (!config.nullClass) throw invalidOption('drop', 'none (there is no null class)', drop)
    }
    const timesteps = t === undefined ? null : checkTimesteps(t, n, diffusion.steps)
    const fraction = timesteps?.find((value) => !Number.isInteger(value))
    if (fraction !== undefined) throw invalidOption('t', 'integers', fraction)
    return {
      n,
      x: x.data,
      deviation: null,
      scale: 1,
      shift: 0,
      labels: Int32Array.from(classes),
      timesteps: timesteps && Int32Array.from(timesteps),
      noise: noise?.data ?? null,
      drop: drop === undefined ? null : Uint8Array.from(drop, (value) => (value ? 1 : 0)),
    }
  }

  /** The rows of a step as jobs: none so large that copying it would hold the event loop up. */
  *#requests(rows: TrainingRows): Generator<() => AccumulateRequest> {
    const { n } = rows
    const size = rows.x.length / n
    const arrays = [rows.x, rows.deviation, rows.noise].filter((array) => array !== null)
    const [[, most] = [0, n]] = jobRanges(n, 4 * size * arrays.length)
    const { microBatch } = this.#info
    const count = most > microBatch ? most - (most % microBatch) : most
    for (let first = 0; first < n; first += count) {
      const last = Math.min(n, first + count)
      const floats = (all: Float32Array) => all.subarray(first * size, last * size)
      yield () => ({
        n: last - first,
        x: floats(rows.x),
        deviation: rows.deviation && floats(rows.deviation),
        scale: rows.scale,
        shift: rows.shift,
        labels: rows.labels.subarray(first, last),
        firstRow: first,
        globalBatch: n,
        timesteps: rows.timesteps?.subarray(first, last) ?? null,
        noise: rows.noise && floats(rows.noise),
        drop: rows.drop?.subarray(first, last) ?? null,
      })
    }
  }
}

function checkLength(what: string, actual: number, n: number): void {
  if (actual === n) return
  throw new DiTError('ERR_DIT_SHAPE', `Expected ${n} ${what} but got ${actual}`)
}

/** A checkpoint's side of a comparison. @internal */
export function fromState({ settings, model, data }: TrainerState) {
  return {
    settings,
    model: model as unknown as TrainedModel,
    ...(data && { fingerprint: data.fingerprint }),
  }
}

/**
 * How sums of gradients are rounded depends on the rows that go through the model at once: once they are
 * chosen, they stay, and a checkpoint knows them.
 */
function exactly(settings: TrainingSettings, { microBatch }: TrainerInfo): TrainingSettings {
  return { ...settings, batchSize: microBatch }
}

/** Has the native part make a trainer, in the place of the one there is. */
async function begin(
  { engine, model, began }: TrainerHost,
  settings: TrainingSettings,
  start?: Start,
): Promise<TrainerInfo> {
  const { batchSize, globalBatch, betas } = settings
  const request: TrainerRequest = {
    seed: BigInt(settings.seed),
    loss: settings.loss,
    labelDropout: settings.labelDropout,
    beta1: betas[0],
    beta2: betas[1],
    eps: settings.eps,
    weightDecay: settings.weightDecay,
    decayAll: settings.decayAll,
    checkpointEvery: Math.min(settings.checkpointEvery, model.config.depth),
    microBatch: batchSize === 'auto' ? 0 : Math.min(batchSize, globalBatch),
    memoryLimit: settings.memoryLimit,
    globalBatch,
    state: start
      ? { step: start.state.step, ...(await readTensors(start.folder, model.config)) }
      : null,
  }
  const { trainer } = await engine.run((native) => native.train(request))
  if (trainer === null) throw new DiTError('ERR_DIT_INTERNAL', 'the trainer said nothing')
  began()
  return trainer
}
