// `dit features`: a folder of pictures to the latents that a model is trained on.

import { type Command, Option } from 'commander'
import { extractFeatures, type FeaturesOptions, type FeaturesResult } from '../data/features.js'
import {
  addPlaceOptions,
  type CommonFlags,
  type Context,
  newCommand,
  type PlaceFlags,
  pick,
} from './command.js'
import { Progress } from './progress.js'
import { columns, duration } from './units.js'
import * as values from './values.js'

type FeaturesFlags = CommonFlags &
  PlaceFlags &
  Omit<FeaturesOptions, 'onProgress' | 'signal' | keyof PlaceFlags>

export function featuresCommand(context: Context): Command {
  const command = newCommand('features', 'encode a folder of images by a VAE, to train on')
    .argument('<folder>', 'with a subfolder for each class, JPEG, PNG and WebP files in them')
    .requiredOption(
      '--vae <source>',
      'a folder (also that of a model with a VAE), a file, or a Hugging Face id',
    )
    .requiredOption('--out <folder>', 'for the features; what was interrupted there goes on')
    .option('--size <size>', 'of the images: N or HEIGHTxWIDTH; default: 256', values.latentSize)
    .option('--flip', 'encode the mirrored images, too')
    .addOption(new Option('--dtype <type>', 'default: fp32').choices(['fp32', 'fp16']))
    .option(
      '--shard-items <n>',
      'images of one file; default: 1024, or 128 MiB',
      values.integer(1, 1 << 20),
    )
    .option('--workers <n>', 'threads that decode images', values.integer(0, 256))
    .addOption(
      new Option('--on-bad-item <action>', 'what a damaged image does; default: skip').choices([
        'skip',
        'error',
      ]),
    )
  addPlaceOptions(command)
  return command.action((folder: string, flags: FeaturesFlags) => features(folder, flags, context))
}

async function features(folder: string, flags: FeaturesFlags, context: Context): Promise<void> {
  const begin = performance.now()
  const progress = new Progress({ quiet: flags.quiet === true })
  let result: FeaturesResult
  try {
    result = await extractFeatures(folder, {
      ...pick(flags, 'vae', 'out', 'size', 'flip', 'dtype', 'shardItems', 'workers', 'onBadItem'),
      ...pick(flags, 'device', 'precision', 'threads'),
      signal: context.signal,
      onProgress(event) {
        if (event.phase === 'encode') progress.update('encoding', 'images', event.done, event.total)
        else progress.load(event)
      },
    })
  } finally {
    progress.end()
  }
  const seconds = (performance.now() - begin) / 1000
  context.print(flags.json ? JSON.stringify({ ...result, seconds }) : describe(result, seconds))
}

/** Damaged images that are named. */
const maxNamed = 10

function describe({ skipped, ...result }: FeaturesResult, seconds: number): string {
  const [channels, height, width] = result.shape
  const files = result.shards === 1 ? '1 file' : `${result.shards} files`
  const rest = skipped.length - maxNamed
  return columns([
    ['features', `${result.out}: ${result.items} of ${channels}×${height}×${width}, ${files}`],
    ['classes', String(result.classNames.length)],
    ['VAE', result.vae],
    ...skipped
      .slice(0, maxNamed)
      .map(({ item, reason }, i) => [i === 0 ? 'skipped' : '', `${item}: ${reason}`] as const),
    ...(rest > 0 ? [['', `and ${rest} more`] as const] : []),
    ['time', `${duration(seconds)}, ${result.encoded} images encoded`],
  ])
}
