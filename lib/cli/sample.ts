// `dit sample`: labels to images.

import { Option } from 'commander'
import type { DiT } from '../dit.js'
import { DiTError } from '../errors.js'
import type { ImagesEvent } from '../events.js'
import { type ProcessOptions, processOptions, type SampleOptions } from '../options.js'
import {
  addDeviceOptions,
  addSourceOptions,
  type CommonFlags,
  type Context,
  type DeviceFlags,
  newCommand,
  pick,
  type SourceFlags,
  withModel,
} from './command.js'
import { planOutput, writeImages } from './outputs.js'
import type { Progress } from './progress.js'
import { makeSampleSet, type SetFlags } from './sample_set.js'
import { columns, duration } from './units.js'
import * as values from './values.js'

export type SampleFlags = CommonFlags &
  SourceFlags &
  DeviceFlags &
  SetFlags &
  ProcessOptions &
  Pick<SampleOptions, 'seed'> & {
    model: string
    labels?: (number | string)[]
    out: string
    columns?: number
  }

export function sampleCommand(context: Context) {
  const command = newCommand('sample', 'make images with a model')
    .requiredOption('--model <source>', 'a folder, a file, a Hugging Face id, or demo')
    .option('--labels <list>', 'class numbers or names, with commas: 207,tabby cat', values.labels)
    .requiredOption(
      '--out <path>',
      'a file (a grid, when there are several images), a name with %d, or a folder/',
    )
    .option(
      '--count <n>',
      'so many images in one file for evaluators, --out x.npz; labels in turn, default: all classes',
      values.integer(1),
    )
    .option('--random-labels', 'with --count: labels drawn at random, by --seed')
    .option(
      '--shard <i/n>',
      'with --count: make the i-th of n shares; the last to finish joins them',
      values.shard,
    )
    .option('--columns <n>', 'images in a row of the grid', values.integer(1))
    .addOption(new Option('--sampler <name>', 'default: dpm++').choices(['dpm++', 'ddim', 'ddpm']))
    .option('--steps <n>', 'evaluations of the model; default: 25, 250 for ddpm', values.integer(1))
    .option('--spacing <spec>', "which timesteps, instead of --steps: '50', 'ddim50' or '10,15,20'")
    .option('--eta <x>', "share of fresh noise in 'ddim', 0 to 1", values.number)
    .option('--clip', 'clamp the predicted image in each step')
    .option('--guidance <x>', 'scale of classifier-free guidance; default: 4', values.number)
    .option(
      '--guidance-channels <n>',
      "how many channels are guided, or 'all'",
      values.guidanceChannels,
    )
    .option('--guidance-interval <from,to>', 'the part of the process, in t/T', values.interval)
    .option('--seed <n>', 'image i has seed n + i; default: random; 0 with --count', values.seed)
  addSourceOptions(command)
  addDeviceOptions(command)
  return command.action((flags: SampleFlags) => sample(flags, context))
}

async function sample(flags: SampleFlags, context: Context): Promise<void> {
  const { labels, count, shard, randomLabels } = flags
  if (count !== undefined) return makeSampleSet(flags, count, context)
  if (labels === undefined || shard || randomLabels) throw wrongFlags(flags)
  return samplePictures({ ...flags, labels }, context)
}

function wrongFlags({ shard, randomLabels }: SampleFlags): DiTError {
  const given = [...(shard ? ['--shard'] : []), ...(randomLabels ? ['--random-labels'] : [])]
  const message =
    given.length > 0
      ? `${given.join(' and ')} go with --count`
      : 'Give --labels, or --count for a file of many images (see dit sample --help)'
  return new DiTError('ERR_DIT_OPTION', message)
}

type PictureFlags = SampleFlags & { labels: (number | string)[] }

async function samplePictures(flags: PictureFlags, context: Context): Promise<void> {
  const begin = performance.now()
  const output = await planOutput(flags.out, flags.columns)
  const result = await withModel(flags.model, flags, context, async (dit, progress, load) => {
    const { images, ...made } = await makeImages(dit, flags, context, progress)
    const written = performance.now()
    const files = await writeImages(output, images)
    const now = performance.now()
    return {
      source: dit.source.description,
      notes: dit.source.notes,
      device: dit.device,
      precision: dit.precision,
      width: images[0]?.width,
      height: images[0]?.height,
      images: images.map(({ label, seed }, i) => ({
        file: files[i] as string,
        label: label as number,
        ...(dit.classNames[label as number] && { className: dit.classNames[label as number] }),
        seed: Number.isSafeInteger(seed) ? seed : String(seed),
      })),
      seconds: {
        load,
        sample: made.sampleSeconds,
        decode: made.decodeSeconds,
        write: (now - written) / 1000,
        total: (now - begin) / 1000,
      },
    }
  })
  context.print(flags.json ? JSON.stringify(result) : describe(result))
}

async function makeImages(
  dit: DiT,
  flags: PictureFlags,
  { signal }: Context,
  progress: Progress,
): Promise<ImagesEvent> {
  const events = dit.stream(flags.labels, {
    ...pick(flags, ...processOptions, 'seed'),
    signal,
  })
  for await (const event of events) {
    if (event.type === 'progress') progress.update('sampling', 'steps', event.step, event.steps)
    if (event.type === 'images') {
      progress.end()
      return event
    }
  }
  throw new DiTError('ERR_DIT_INTERNAL', 'the stream ended without images')
}

interface Result {
  source: string
  notes: string[]
  device: string
  precision: string
  width: number | undefined
  height: number | undefined
  images: { file: string; label: number; className?: string | undefined; seed: unknown }[]
  seconds: { load: number; sample: number; decode: number; write: number; total: number }
}

function describe({ source, notes, device, precision, images, seconds, ...result }: Result) {
  const size = `${result.width}×${result.height}`
  const { load, sample, decode, write, total } = seconds
  return [
    ...images.map(({ file, label, className, seed }) => {
      return `${file}: class ${label}${className ? ` (${className})` : ''}, seed ${seed}, ${size}`
    }),
    columns([
      ['model', source],
      ...notes.map((note) => ['', note] as const),
      ['device', `${device}, ${precision}`],
      [
        'time',
        `${duration(total)}: load ${duration(load)}, sample ${duration(sample)}, ` +
          `decode ${duration(decode)}, write ${duration(write)}`,
      ],
    ]),
  ].join('\n')
}
