// From options to what the native part is to load.

import path from 'node:path'
import type { ModelSpec } from '../bindings.js'
import { adapt } from './adapt.js'
import { chooseDevice } from './devices.js'
import { invalidOption } from './errors.js'
import { completeConfig } from './formats/dit_config.js'
import { defaultSchedule } from './formats/schedule_config.js'
import { resolveSource, resolveVae } from './formats/source.js'
import type { DiTConfig, DiTConfigInput, WeightsChoice } from './formats/types.js'
import { Engine } from './jobs.js'
import type { ClassNames } from './labels.js'
import type { CreateOptions, DeviceOptions, LoadOptions } from './options.js'
import { packageRoot } from './root.cjs'
import { checkSchedule, seedsFrom } from './sampling.js'

/** Where a model's weights came from. */
export interface SourceInfo {
  /** How the transformer's weights are stored; `'fresh'` for `DiT.create`. */
  kind: 'diffusers' | 'safetensors' | 'torch' | 'fresh'
  /** One line for people: the file, folder, or id and commit, and which weights of it. */
  description: string
  /** The weights chosen from a training checkpoint that has several. */
  weights?: WeightsChoice
  /** The Hugging Face repository, when it was one. */
  hub?: { id: string; revision: string; commit: string }
  /** Where the VAE came from, when there is one. */
  vae?: string
  /** What was assumed because nothing said it, and what was adapted, in sentences. */
  notes: string[]
}

/** What the native part loads, and what only this side knows of it. @internal */
export interface Described {
  spec: ModelSpec
  source: SourceInfo
  classNames: ClassNames
}

/** @internal */
export async function describeSource(source: string, given: LoadOptions): Promise<Described> {
  const { weights, config, vae, revision, signal, onProgress } = given
  const place = await chooseDevice(given)
  const found = await resolveSource(source, {
    ...demoOption(source),
    ...(weights && { weights }),
    ...(config !== undefined && { config }),
    ...(vae && { vae }),
    ...(revision && { revision }),
    ...(signal && { signal }),
    ...(onProgress && { onProgress }),
  })
  const { notes, ...dit } = adapt(found.dit, given)
  const known = dit.config.numClasses === found.dit.config.numClasses ? (found.id2label ?? {}) : {}
  return {
    spec: {
      ...place,
      dit: { ...dit, seed: 0n },
      vae: found.vae ? { config: found.vae.config, tensors: found.vae.tensors } : null,
      schedule: found.schedule,
    },
    source: {
      kind: found.kind,
      description: found.description,
      notes: [...found.notes, ...notes],
      ...(found.weights && { weights: found.weights }),
      ...(found.hub && { hub: found.hub }),
      ...(found.vae && { vae: found.vae.description }),
    },
    classNames: given.id2label ? named(given.id2label, dit.config) : known,
  }
}

/** @internal */
export async function describeFresh(
  config: DiTConfigInput | string,
  given: CreateOptions,
): Promise<Described> {
  const { vae: vaeSource, signal, onProgress, id2label = {} } = given
  const complete = completeConfig(config)
  const place = await chooseDevice(given)
  const schedule = { ...defaultSchedule, ...given.schedule }
  checkSchedule(schedule)
  const vae =
    vaeSource === undefined
      ? undefined
      : await resolveVae(vaeSource, complete, {
          ...(signal && { signal }),
          ...(onProgress && { onProgress }),
        })
  const [seed = 0n] = seedsFrom(given.seed, 1)
  const name = typeof config === 'string' ? config : `DiT of depth ${complete.depth}`
  return {
    spec: {
      ...place,
      dit: { config: complete, tensors: null, stored: null, seed },
      vae: vae ? { config: vae.config, tensors: vae.tensors } : null,
      schedule,
    },
    source: {
      kind: 'fresh',
      description: `a fresh ${name}, seed ${seed}`,
      notes: [],
      ...(vae && { vae: vae.description }),
    },
    classNames: named(id2label, complete),
  }
}

/** Throws ERR_DIT_OPTION for the name of a class that the model does not have. */
function named(names: ClassNames, { numClasses }: DiTConfig): ClassNames {
  const beyond = Object.keys(names).find((id) => Number(id) >= numClasses)
  if (beyond === undefined) return names
  throw invalidOption('id2label', `names of classes 0 to ${numClasses - 1}`, Number(beyond))
}

/** A VAE without a model: the native part has the smallest one beside it. @internal */
export async function describeVae(source: string, given: DeviceOptions) {
  const { signal, onProgress } = given
  const { description, ...vae } = await resolveVae(source, undefined, {
    ...(signal && { signal }),
    ...(onProgress && { onProgress }),
  })
  const size = { depth: 1, hidden: 4, heads: 1, patchSize: 1, latentSize: 1, numClasses: 1 }
  const config = completeConfig({ ...size, channels: vae.config.latentChannels })
  const spec: ModelSpec = {
    ...(await chooseDevice(given)),
    dit: { config, tensors: null, stored: null, seed: 0n },
    vae,
    schedule: defaultSchedule,
  }
  return { spec, vae, description }
}

/** Starts the native thread and has it load the model. @internal */
export async function openEngine(
  spec: ModelSpec,
  { signal, onProgress }: Pick<LoadOptions, 'signal' | 'onProgress'>,
): Promise<Engine> {
  const engine = new Engine()
  try {
    await engine.run((model) => model.load(spec), {
      signal,
      ...(onProgress && {
        onEvent: (event) => {
          onProgress({ phase: 'prepare', loaded: event.done, total: event.total })
        },
      }),
    })
  } catch (error) {
    await engine.close()
    throw error
  }
  return engine
}

/**
 * What the source 'demo' stands for: the model that comes with the package (demo/README.md). As an
 * option for `resolveSource`, empty for other sources.
 *
 * @internal
 */
export function demoOption(source: string): { demoPath?: string } {
  return source === 'demo' ? { demoPath: path.join(packageRoot, 'demo/model.safetensors') } : {}
}
