// The loop of `dit.train`: data, steps, and what happens between them.

import { mkdir } from 'node:fs/promises'
import path from 'node:path'
import type { DataBatch, OpenData, TrainingData } from '../data/types.js'
import { DiTError, invalidOption, show } from '../errors.js'
import type { VaeConfig } from '../formats/types.js'
import { downscale } from '../sampling.js'
import { readState } from './checkpoint.js'
import type { CheckpointEvent, StepEvent, TrainEvent } from './events.js'
import { checkSampling, type Sample, sampleGrid } from './grid.js'
import { Meter } from './meter.js'
import { MetricsLog } from './metrics_log.js'
import { resolveSettings, type TrainingSettings, type TrainOptions } from './options.js'
import { toRows } from './rows.js'
import { RunFolder } from './run_folder.js'
import { checkUnchanged, type DataState } from './state.js'
import { fromState, type Start, type StepMetrics, Trainer, type TrainerHost } from './trainer.js'

/** The model, and what of it only `dit.train` needs. @internal */
export interface TrainHost extends TrainerHost {
  readonly vae: VaeConfig | undefined
  readonly sample: Sample
  /** Writes the averaged weights. */
  save(file: string): Promise<void>
  /** Gives the classes names, where the model has none. */
  nameClasses(names: readonly string[]): void
}

/** Rollbacks to one checkpoint, after which the training is given up. */
const maxRollbacks = 5

/** @internal */
export async function* train(
  host: TrainHost,
  input: TrainingData,
  given: TrainOptions,
): AsyncGenerator<TrainEvent, void, undefined> {
  given.signal?.throwIfAborted()
  const { config } = host.model
  checkOptions(given)
  checkSampling(config, host.vae !== undefined, given.sampleEvery)
  const run = given.out === undefined ? undefined : await RunFolder.open(given.out)
  try {
    yield* trainIn(run, host, input, given)
  } finally {
    await run?.close()
  }
}

async function* trainIn(
  run: RunFolder | undefined,
  host: TrainHost,
  input: TrainingData,
  given: TrainOptions,
): AsyncGenerator<TrainEvent, void, undefined> {
  const { signal, workers, onBadItem = 'skip' } = given
  const { config } = host.model
  const start = await findStart(given, run)
  const { openData } = await import('../data/open.js')
  const data = await openData(input, {
    model: {
      channels: config.channels,
      latentSize: config.latentSize,
      numClasses: config.numClasses,
      classNames: host.model.classNames,
      vae: host.vae && { ...host.vae, downscale: downscale(host.vae) },
    },
    ...(workers !== undefined && { workers }),
    onBadItem,
    ...(signal && { signal }),
  })
  try {
    const settings = settle(given, host, data, start)
    const trainer = await Trainer.open(host, given, settings, start)
    yield* new Training({ host, given, settings, data, trainer, folder: run, start }).run()
  } finally {
    await data.close()
  }
}

function checkOptions({ steps, epochs, out, resume, saveEvery, keep }: TrainOptions): void {
  if (steps !== undefined && epochs !== undefined) {
    throw invalidOption('epochs', 'nothing beside steps', epochs)
  }
  if (out !== undefined) return
  if (resume === true) throw invalidOption('resume', 'a folder, where there is no out,', resume)
  if (saveEvery !== undefined) throw invalidOption('saveEvery', 'nothing without out', saveEvery)
  if (keep !== undefined) throw invalidOption('keep', 'nothing without out', keep)
}

/** The checkpoint to go on from, if there is one. */
async function findStart(
  { resume }: TrainOptions,
  run: RunFolder | undefined,
): Promise<Start | undefined> {
  const isOther = typeof resume === 'string' && !run?.owns(resume)
  if (resume === undefined || resume === false || isOther) await run?.expectNew()
  const folder = resume === true ? await run?.latest() : resume || undefined
  return folder === undefined ? undefined : { folder, state: await readState(folder) }
}

/** The settings of this training, which are those of the checkpoint or allowed to differ. */
function settle(
  given: TrainOptions,
  { model }: TrainHost,
  data: OpenData,
  start: Start | undefined,
): TrainingSettings {
  const known = start?.state.settings
  let settings = resolveSettings(given, model.config, known)
  if (given.epochs !== undefined) {
    if (data.length === undefined) {
      throw invalidOption(
        'epochs',
        'steps instead, since the length of the data is not known,',
        given.epochs,
      )
    }
    const steps = Math.ceil((given.epochs * data.length) / settings.globalBatch)
    settings = resolveSettings({ ...given, steps }, model.config, known)
  }
  if (start) {
    const is = { settings, model, fingerprint: data.fingerprint }
    checkUnchanged(start.folder, fromState(start.state), is, given.allowChanges)
  }
  return settings
}

interface Opened {
  readonly host: TrainHost
  readonly given: TrainOptions
  readonly settings: TrainingSettings
  readonly data: OpenData
  readonly trainer: Trainer
  readonly folder: RunFolder | undefined
  readonly start: Start | undefined
}

/** One run of the loop. */
class Training {
  readonly #opened: Opened
  readonly #meter = new Meter()
  readonly #signal: AbortSignal
  #position: number
  #skippedItems: number
  #log: MetricsLog | undefined
  /** What the latest checkpoint holds. */
  #saved: { step: number; position: number } | undefined
  #rollbacks = 0
  #finished = false

  constructor(opened: Opened) {
    this.#opened = opened
    this.#signal = opened.given.signal ?? new AbortController().signal
    this.#position = opened.start?.state.data?.position ?? 0
    this.#skippedItems = opened.start?.state.data?.skippedItems ?? 0
  }

  async *run(): AsyncGenerator<TrainEvent, void, undefined> {
    const { folder, start, trainer, given } = this.#opened
    if (folder) {
      const isOwn = start !== undefined && folder.owns(start.folder)
      const bytes = isOwn ? (start.state.data?.metricsBytes ?? 0) : 0
      this.#log = await MetricsLog.open(folder.metrics, bytes)
      if (isOwn) this.#saved = { step: trainer.steps, position: this.#position }
    }
    let failed = false
    try {
      yield* this.#begin()
      yield* this.#steps()
      yield* this.#finish()
    } catch (error) {
      // Between two steps the model is sound, so what was done by then is kept.
      failed = !(given.signal?.aborted && error === given.signal.reason)
      throw error
    } finally {
      try {
        if (!failed && !this.#finished) await this.#save()
      } finally {
        await this.#log?.close()
      }
    }
  }

  *#begin(): Generator<TrainEvent> {
    const { host, data, settings, trainer, start } = this.#opened
    const { batchSize, ...memory } = trainer.info
    const { numClasses } = host.model.config
    if (data.numClasses !== undefined && data.numClasses < numClasses) {
      const message = `The model has ${numClasses} classes, the data ${data.numClasses}`
      yield { type: 'warning', step: trainer.steps, message }
    }
    const known = host.model.classNames
    if (Object.keys(known).length === 0) host.nameClasses(data.classNames)
    const other = data.classNames.findIndex((name, i) => name !== (known[i] ?? name))
    if (other >= 0) {
      const message =
        `class ${other} is ${show(known[other])} for the model, ${show(data.classNames[other])} in the ` +
        'data: it is trained as that class'
      yield { type: 'warning', step: trainer.steps, message }
    }
    yield {
      type: 'start',
      step: trainer.steps,
      steps: settings.steps ?? undefined,
      resumed: start?.folder,
      items: data.length,
      batchSize,
      globalBatch: settings.globalBatch,
      seed: BigInt(settings.seed),
      ...memory,
    }
  }

  async *#steps(): AsyncGenerator<TrainEvent, void, undefined> {
    const { trainer, data, host, settings } = this.#opened
    const { steps, flip, seed, globalBatch } = settings
    const signal = this.#signal
    if (steps !== null && steps < trainer.steps) {
      throw invalidOption('steps', `at least the ${trainer.steps} that are made already,`, steps)
    }
    if (trainer.steps === steps) return
    const batches = data.batches({
      batchSize: globalBatch,
      seed: BigInt(seed),
      position: this.#position,
      flip,
      signal,
    })
    try {
      while (steps === null || trainer.steps < steps) {
        signal.throwIfAborted()
        const begin = performance.now()
        // The one after it is made while this one is trained on.
        const { value: batch } = await batches.next()
        if (!batch) return
        yield* this.#skipped(batch)
        const rows = await toRows(batch, data, host.vae, host.engine, signal)
        const metrics = await trainer.advance(rows, signal)
        this.#position = batch.position
        this.#meter.add(metrics, (performance.now() - begin) / 1000, batch.waited)
        yield* this.#after(metrics)
      }
    } finally {
      await batches.return()
    }
  }

  /** What follows a step: its event, a rollback, a checkpoint, a sample grid. */
  async *#after(metrics: StepMetrics): AsyncGenerator<TrainEvent, void, undefined> {
    const { logEvery = 1, saveEvery = 1000, sampleEvery } = this.#opened.given
    const { trainer, folder, settings } = this.#opened
    const { steps, maxSkipped } = settings
    const { step, outcome } = metrics
    const applied = outcome === 'applied'
    if (!applied || step % logEvery === 0 || step === steps) yield* this.#tell(metrics)
    if (!applied && trainer.skippedInRow >= maxSkipped) yield* this.#rollBack(outcome)
    if (!applied) return
    if (folder && step % saveEvery === 0 && step !== steps) yield* this.#trySave()
    if (sampleEvery !== undefined && step % sampleEvery === 0) yield* this.#makeSamples()
  }

  async *#tell(metrics: StepMetrics): AsyncGenerator<TrainEvent, void, undefined> {
    const { length } = this.#opened.data
    const { steps } = this.#opened.settings
    const stepsLeft = steps === null ? undefined : steps - metrics.step
    const event: StepEvent = {
      ...this.#meter.take(metrics, stepsLeft),
      epoch: length === undefined ? undefined : this.#position / length,
      position: this.#position,
      skippedItems: this.#skippedItems,
    }
    yield* this.#record(event)
    yield event
  }

  async *#skipped({ skipped }: DataBatch): AsyncGenerator<TrainEvent, void, undefined> {
    if (skipped.length === 0) return
    const { given, trainer } = this.#opened
    this.#skippedItems += skipped.length
    for (const item of skipped) given.onSkippedItem?.(item)
    const event = { type: 'skippedItems' as const, step: trainer.steps, items: skipped }
    yield* this.#record(event)
    yield event
  }

  /** A line of metrics.jsonl. A full disk does not end the training. */
  async *#record(event: object): AsyncGenerator<TrainEvent, void, undefined> {
    try {
      await this.#log?.add(event)
    } catch (error) {
      yield this.#warning(error)
    }
  }

  async *#rollBack(outcome: StepMetrics['outcome']): AsyncGenerator<TrainEvent, void, undefined> {
    const { trainer, settings, folder: run } = this.#opened
    const from = trainer.steps
    const what =
      outcome === 'nonFinite' ? 'the loss or its gradient is not finite' : 'the gradient is a spike'
    const problem = `${settings.maxSkipped} steps in a row after step ${from} were skipped: ${what}`
    const advice = 'Train at a lower lr, and look for what is wrong in the data'
    const folder = await run?.latest()
    if (folder === undefined) {
      throw new DiTError(
        'ERR_DIT_NONFINITE',
        `${problem}. There is no checkpoint to go back to. ${advice}; with out and a smaller saveEvery ` +
          'there will be one',
      )
    }
    if (this.#rollbacks === maxRollbacks) {
      throw new DiTError(
        'ERR_DIT_NONFINITE',
        `${problem}, also after going back to ${folder} ${maxRollbacks} times at ever lower rates. ${advice}`,
      )
    }
    this.#rollbacks++
    await trainer.rollBack({ folder, state: await readState(folder) })
    const event = {
      type: 'rollback' as const,
      from,
      step: trainer.steps,
      folder,
      lrFactor: trainer.lrFactor,
    }
    yield* this.#record(event)
    yield event
  }

  /** A checkpoint that cannot be written does not end the training: the next may succeed. */
  async *#trySave(): AsyncGenerator<TrainEvent, void, undefined> {
    let event: CheckpointEvent | undefined
    try {
      event = await this.#save()
    } catch (error) {
      if (!(error instanceof DiTError && error.code === 'ERR_DIT_FILE')) throw error
      yield this.#warning(error)
    }
    if (event) yield event
  }

  /** Nothing where there is no folder, or nothing new. */
  async #save(): Promise<CheckpointEvent | undefined> {
    const { folder, trainer, host, data, given } = this.#opened
    const step = trainer.steps
    const position = this.#position
    if (!folder) return undefined
    if (this.#saved?.step === step && this.#saved.position === position) return undefined
    const state: DataState = {
      position,
      skippedItems: this.#skippedItems,
      fingerprint: { ...data.fingerprint },
      metricsBytes: this.#log?.bytes ?? 0,
    }
    const { keep = 3 } = given
    const saved = await trainer.exclusive(() => {
      return folder.save(host.engine, host.model, trainer.state(state), keep)
    })
    this.#saved = { step, position }
    this.#rollbacks = 0
    return { type: 'checkpoint', step, folder: saved }
  }

  async *#makeSamples(): AsyncGenerator<TrainEvent, void, undefined> {
    const { host, trainer, given, folder } = this.#opened
    const step = trainer.steps
    const signal = this.#signal
    const image = await sampleGrid(host.sample, host.model.config, given.samples ?? {}, signal)
    const file = folder?.samples(step)
    if (file !== undefined) {
      try {
        await mkdir(path.dirname(file), { recursive: true })
        await image.toFile(file)
      } catch (error) {
        yield this.#warning(error)
      }
    }
    yield { type: 'samples', step, image, file }
  }

  async *#finish(): AsyncGenerator<TrainEvent, void, undefined> {
    const { folder, trainer, host } = this.#opened
    const event = await this.#save()
    if (folder && trainer.steps > 0) await host.save(folder.weights)
    this.#finished = true
    if (event) yield event
  }

  #warning(error: unknown): TrainEvent {
    const message = error instanceof Error ? error.message : String(error)
    return { type: 'warning', step: this.#opened.trainer.steps, message, error }
  }
}
