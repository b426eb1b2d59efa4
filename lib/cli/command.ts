// What all commands have in common.

import { Command, Option } from 'commander'
import { DiT } from '../dit.js'
import type { LoadOptions } from '../options.js'
import { Progress } from './progress.js'
import * as values from './values.js'

/** What every command takes. */
export interface CommonFlags {
  json?: true
  quiet?: true
  debug?: true
}

/** Which model, and what is chosen of it. */
export type SourceFlags = Pick<LoadOptions, 'weights' | 'config' | 'vae' | 'revision'>

/** Where it is run. */
export type PlaceFlags = Pick<LoadOptions, 'device' | 'precision' | 'threads'>

/** How it is run. */
export type DeviceFlags = PlaceFlags & Pick<LoadOptions, 'latentSize'>

/** What its classes are called. */
export interface NameFlags {
  classNames?: Record<number, string>
}

/** What a command runs with: it ends when the signal says so. */
export interface Context {
  signal: AbortSignal
  /** Writes a result. */
  print: (text: string) => void
  /** Exit status of a command that ends without an error. */
  status: number
}

export function newCommand(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .option('--json', 'print the result as one JSON object')
    .option('--quiet', 'no progress')
    .option('--debug', 'print the stack of an error (also: DIT_DEBUG=1)')
}

export function addSourceOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--weights <which>', 'of a training checkpoint; default: ema').choices([
        'ema',
        'model',
      ]),
    )
    .option(
      '--vae <source>',
      "VAE to use: a folder, a file or a Hugging Face id, not the model's own",
    )
    .option(
      '--config <config>',
      'preset or JSON, where the checkpoint does not say its size',
      values.config,
    )
    .option('--revision <name>', 'branch, tag or commit of a Hugging Face repository')
}

export function addPlaceOptions(command: Command): Command {
  return command
    .option('--device <device>', "'auto', 'cpu', 'cuda' or 'cuda:1'")
    .addOption(
      new Option('--precision <precision>', 'default: bf16 where the device has it').choices([
        'fp32',
        'tf32',
        'bf16',
      ]),
    )
    .option(
      '--threads <n>',
      'processor threads; default: all cores, or what a container may use',
      values.integer(0, 4096),
    )
}

export function addDeviceOptions(command: Command): Command {
  return addPlaceOptions(command).option(
    '--latent-size <size>',
    'another size of the latent: N or HEIGHTxWIDTH',
    values.latentSize,
  )
}

export function addNameOption(command: Command): Command {
  return command.option('--class-names <list>', 'of classes 0, 1, …: cat,dog', values.classNames)
}

/** The same as an option of `DiT.load` and `DiT.create`. */
export function nameOptions({ classNames }: NameFlags): { id2label?: Record<number, string> } {
  return classNames ? { id2label: classNames } : {}
}

/** The keys of `from` that are there. */
export function pick<T extends object, K extends keyof T>(from: T, ...keys: K[]): Pick<T, K> {
  return Object.fromEntries(
    keys.filter((key) => from[key] !== undefined).map((key) => [key, from[key]]),
  ) as Pick<T, K>
}

/** Loads a model with progress, runs `use` with it, and closes it whatever happens. */
export async function withModel<T>(
  source: string,
  flags: SourceFlags & DeviceFlags & NameFlags & CommonFlags,
  { signal }: Context,
  use: (dit: DiT, progress: Progress, loadSeconds: number) => Promise<T>,
): Promise<T> {
  const progress = new Progress({ quiet: flags.quiet === true })
  const begin = performance.now()
  let dit: DiT | undefined
  try {
    dit = await DiT.load(source, {
      ...pick(flags, 'weights', 'config', 'vae', 'revision'),
      ...pick(flags, 'device', 'precision', 'threads', 'latentSize'),
      ...nameOptions(flags),
      signal,
      onProgress: progress.load,
    })
    progress.end()
    return await use(dit, progress, (performance.now() - begin) / 1000)
  } finally {
    progress.end()
    await dit?.close()
  }
}
