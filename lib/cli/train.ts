// `dit train`: a folder of images to a model.

import { type Command, Option } from 'commander'
import { DiT } from '../dit.js'
import { invalidOption } from '../errors.js'
import type { LoadOptions } from '../options.js'
import type { StepEvent, TrainEvent } from '../train/events.js'
import { type TrainOptions, trainSchema } from '../train/options.js'
import { RunFolder } from '../train/run_folder.js'
import {
  addDeviceOptions,
  addNameOption,
  type CommonFlags,
  type Context,
  type DeviceFlags,
  type NameFlags,
  nameOptions,
  newCommand,
  pick,
  type SourceFlags,
} from './command.js'
import { Progress } from './progress.js'
import { duration, scaled } from './units.js'
import * as values from './values.js'

/** Options of `dit.train` that have no flag of the same name. */
const otherOptions = ['out', 'samples', 'signal', 'onSkippedItem'] as const

type OptionFlag = Exclude<keyof TrainOptions, (typeof otherOptions)[number]>

const optionFlags = Object.keys(trainSchema.entries).filter(
  (name) => !otherOptions.some((other) => other === name),
) as OptionFlag[]

type TrainFlags = CommonFlags &
  SourceFlags &
  DeviceFlags &
  NameFlags &
  Pick<LoadOptions, 'numClasses' | 'patchSize'> &
  Pick<TrainOptions, OptionFlag> & {
    data: string
    model?: string
    out: string
    sampleLabels?: (number | string)[]
    sampleRows?: number
    sampleSteps?: number
    sampleGuidance?: number
  }

export function trainCommand(context: Context): Command {
  const command = newCommand('train', 'train a model on images')
    .requiredOption(
      '--data <path>',
      'a folder with a subfolder for each class, of features, or of idx files',
    )
    .requiredOption(
      '--out <folder>',
      'for checkpoints, metrics, sample grids and the final weights',
    )
    .option('--model <source>', 'train this one on: a folder, a file, a Hugging Face id, or demo')
    .option(
      '--config <config>',
      'a fresh model: preset, JSON or a .json file; with --model, where it does not say its size',
      values.configOrFile,
    )
    .option('--steps <n>', 'steps in all', values.integer(1))
    .option('--epochs <x>', 'instead of --steps: how often every image is seen', values.number)
    .option(
      '--resume [checkpoint]',
      'go on from the last checkpoint in --out, or from this one; what is not given is as it was, but for --vae',
    )
    .option('--allow-changes <names>', 'options that may differ then: lr,data', values.names)
  addOptimiserOptions(command)
  command
    .option('--flip', 'mirror half of the images')
    .option('--workers <n>', 'threads that decode images', values.integer(0, 256))
    .addOption(
      new Option('--on-bad-item <what>', 'for damaged images; default: skip').choices([
        'skip',
        'error',
      ]),
    )
    .option('--save-every <n>', 'steps between checkpoints; default: 1000', values.integer(1))
    .option('--keep <n>', 'checkpoints to keep; default: 3', values.integer(1))
    .option('--log-every <n>', 'steps between lines of metrics.jsonl', values.integer(1))
    .option('--sample-every <n>', 'steps between sample grids; default: none', values.integer(1))
    .option('--sample-labels <list>', 'a column each; default: the first 10', values.labels)
    .option('--sample-rows <n>', 'default: 4', values.integer(1))
    .option('--sample-steps <n>', 'default: 25', values.integer(1))
    .option('--sample-guidance <x>', 'default: 4', values.number)
    .addOption(
      new Option('--weights <which>', 'of --model; default: ema').choices(['ema', 'model']),
    )
    .option(
      '--num-classes <n>',
      'of --model: make its label table anew for so many classes',
      values.integer(1),
    )
    .option('--patch-size <n>', 'of --model: resize its patches', values.integer(1))
    .option('--vae <source>', 'VAE of the model: a folder, a file or a Hugging Face id')
    .option('--revision <name>', 'branch, tag or commit of a Hugging Face repository')
  addNameOption(command)
  addDeviceOptions(command)
  return command.action((flags: TrainFlags) => train(flags, context))
}

function addOptimiserOptions(command: Command): void {
  command
    .option('--batch-size <n>', "rows at once, or 'auto': what fits", values.batchSize)
    .option(
      '--global-batch <n>',
      'rows of a step; default: --batch-size, or 256',
      values.integer(1),
    )
    .option('--memory-limit <bytes>', 'for training: 4GB; default: what is free')
    .option('--lr <x>', 'learning rate; default: 1e-4', values.number)
    .addOption(
      new Option('--schedule <name>', 'of the learning rate; default: constant').choices([
        'constant',
        'linear',
        'cosine',
      ]),
    )
    .option('--warmup <n>', 'steps; default: 5 % of all, at most 10000', values.integer(0))
    .option('--min-lr <x>', 'at the end of cosine; default: 0', values.number)
    .option('--weight-decay <x>', 'default: 0', values.number)
    .option('--decay-all', 'weight decay on biases and the label table, too')
    .option('--betas <a,b>', 'of AdamW; default: 0.9,0.999', values.pair)
    .option('--eps <x>', 'of AdamW; default: 1e-8', values.number)
    .option('--ema-decay <x>', 'of the averaged weights; default: 0.9999', values.number)
    .option(
      '--ema-warmup',
      'average over the last tenth of the steps until that decay is reached; the default',
    )
    .option('--no-ema-warmup', 'with that decay from the first step on')
    .option('--clip-norm <x>', 'of the gradient, 0: never; default: 1', values.number)
    .addOption(
      new Option('--loss <name>', 'default: hybrid where the model learns sigma').choices([
        'hybrid',
        'mse',
      ]),
    )
    .option('--label-dropout <x>', 'default: 0.1', values.number)
    .option(
      '--checkpointing <policy>',
      "activations: 'none', 'block', or blocks at once; default: none",
      values.checkpointing,
    )
    .option('--seed <n>', 'default: random', values.seed)
    .option('--spike-factor <x>', 'of the usual gradient norm; default: 10', values.number)
    .option('--max-skipped <n>', 'steps in a row until a rollback; default: 5', values.integer(1))
    .option('--rollback-lr-factor <x>', 'default: 0.5', values.number)
}

async function train(flags: TrainFlags, context: Context): Promise<void> {
  const { steps, epochs, resume } = flags
  if ((steps ?? epochs ?? resume) === undefined) {
    throw invalidOption('--steps', 'a number of steps, or --epochs,', undefined)
  }
  const terminated = new AbortController()
  // The second time, nothing is waited for.
  const onTerminate = () => terminated.abort()
  process.once('SIGTERM', onTerminate)
  const signal = AbortSignal.any([context.signal, terminated.signal])
  const progress = new Progress({ quiet: flags.quiet === true })
  const told = new Report(flags, progress)
  signal.addEventListener('abort', () => told.stopping(), { once: true })
  const begin = performance.now()
  let stopped = false
  let dit: DiT | undefined
  try {
    dit = await openModel(flags, signal, progress)
    progress.end()
    told.loaded(dit)
    for await (const event of dit.train(flags.data, { ...options(flags), signal })) told.on(event)
  } catch (error) {
    if (dit === undefined || !signal.aborted || error !== signal.reason) throw error
    stopped = true
    told.saved(await savedStep(flags.out))
  } finally {
    process.off('SIGTERM', onTerminate)
    progress.end()
    await dit?.close()
  }
  const result = { out: flags.out, stopped, seconds: (performance.now() - begin) / 1000 }
  told.end(result, context)
}

/** The step of the checkpoint that a training leaves when it is stopped; undefined without one. */
async function savedStep(out: string): Promise<number | undefined> {
  const checkpoint = await (await RunFolder.open(out)).latest()
  const [, step] = /(\d+)$/.exec(checkpoint ?? '') ?? []
  return step === undefined ? undefined : Number(step)
}

function options(flags: TrainFlags): TrainOptions {
  const { sampleLabels: labels, sampleRows: rows, sampleSteps: steps } = flags
  const { sampleGuidance: guidance } = flags
  const samples = { labels, rows, steps, guidance }
  return {
    ...pick(flags, ...optionFlags),
    out: flags.out,
    samples: pick(samples, 'labels', 'rows', 'steps', 'guidance') as TrainOptions['samples'] & {},
  }
}

/** A fresh model, one to be trained on, or that of the checkpoint. */
async function openModel(flags: TrainFlags, signal: AbortSignal, progress: Progress): Promise<DiT> {
  const { model, config, out, resume } = flags
  const place = pick(flags, 'device', 'precision', 'threads')
  const known = { ...pick(flags, 'vae'), ...nameOptions(flags) }
  const common = { ...place, ...known, signal, onProgress: progress.load }
  const adapted = pick(flags, 'numClasses', 'latentSize', 'patchSize')
  const source = pick(flags, 'weights', 'config', 'revision')
  if (model !== undefined) return DiT.load(model, { ...common, ...source, ...adapted })
  if (config !== undefined) {
    const [name] = Object.keys(adapted)
    if (name !== undefined) {
      throw invalidOption(name, 'nothing without --model (it belongs into --config)', adapted)
    }
    return DiT.create(config, { ...common, ...pick(flags, 'seed') })
  }
  const checkpoint = resume === true ? await RunFolder.at(out).latest() : resume
  if (checkpoint) return DiT.load(checkpoint, { ...common, ...adapted, weights: 'model' })
  const why = resume ? ` (there is no checkpoint in ${out} yet)` : ''
  throw invalidOption('--config', `a preset or JSON, or a --model to train on${why},`, undefined)
}

interface Result {
  out: string
  stopped: boolean
  seconds: number
}

/** What is printed: progress and events on stderr, the result on stdout. */
class Report {
  readonly #flags: TrainFlags
  readonly #progress: Progress
  #step = 0
  #total = Number.POSITIVE_INFINITY
  #last: StepEvent | undefined

  constructor(flags: TrainFlags, progress: Progress) {
    this.#flags = flags
    this.#progress = progress
  }

  loaded({ source: { description, notes } }: DiT): void {
    for (const note of notes) this.#progress.say(`${description}: ${note}`)
  }

  on(event: TrainEvent): void {
    switch (event.type) {
      case 'start': {
        const { step, steps, resumed, batchSize, globalBatch, parameterBytes, activationBytes } =
          event
        this.#total = steps ?? Number.POSITIVE_INFINITY
        const memory = scaled(parameterBytes + activationBytes, 'B')
        const from = resumed ? `from ${resumed}, ` : ''
        this.#progress.say(
          `${from}step ${step} of ${steps ?? 'no end'}, ${globalBatch} rows a step, ${batchSize} at once, ` +
            `${memory}, seed ${event.seed}`,
        )
        this.#update(step) // from here on, time counts
        break
      }
      case 'step':
        this.#last = event
        this.#tell(event)
        break
      case 'rollback':
        this.#progress.say(
          `too many steps were skipped: from step ${event.from} back to ${event.step}, learning rate × ` +
            `${event.lrFactor}`,
        )
        break
      case 'warning':
        this.#progress.say(`warning: ${event.message}`)
        break
      case 'skippedItems':
        for (const { item, reason } of event.items) {
          this.#progress.say(`skipped ${item}: ${reason}`)
        }
        break
    }
  }

  #tell({ step, outcome, loss, lr, imagesPerSecond, gradNorm }: StepEvent): void {
    if (outcome !== 'applied') {
      this.#progress.say(`skipped a step after step ${step}: ${outcome}, gradient norm ${gradNorm}`)
    }
    const detail =
      `loss ${loss.toPrecision(4)}, lr ${lr.toExponential(2)}, ` +
      `${scaled(imagesPerSecond, '').trim()} images/s`
    this.#update(step, detail)
  }

  #update(step: number, detail?: string): void {
    this.#step = step
    this.#progress.update('training', 'steps', step, this.#total, detail)
  }

  /** Further than the last event where these are many steps apart. */
  saved(step: number | undefined): void {
    if (step !== undefined) this.#step = step
  }

  stopping(): void {
    this.#progress.say('stopping, after a checkpoint; a second time stops at once')
  }

  end(result: Result, context: Context): void {
    const { stopped, seconds, out } = result
    const step = this.#step
    const summary = { ...result, step, ...(this.#last && { loss: this.#last.loss }) }
    const how = stopped ? `stopped, saved; go on with --resume` : 'done'
    const loss = this.#last ? `, loss ${this.#last.loss.toPrecision(4)}` : ''
    context.print(
      this.#flags.json
        ? JSON.stringify(summary)
        : `${out}: step ${step}${loss}, ${duration(seconds)}, ${how}`,
    )
  }
}
