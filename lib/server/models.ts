// The models that are served.

import type { DiT } from '../dit.js'
import { DiTError } from '../errors.js'
import { downscale } from '../sampling.js'
import { Classes } from './classes.js'
import { HttpError } from './errors.js'
import type { Settings } from './options.js'

/** A model that is served. @internal */
export interface Served {
  readonly id: string
  readonly dit: DiT
  readonly classes: Classes
  /** Of its images. */
  readonly width: number
  readonly height: number
  readonly channels: number
  /** When it was loaded: seconds since 1970. */
  readonly created: number
  /** What makes its images what they are; undefined where that cannot be told. */
  identity(): Promise<string | undefined>
}

/** @internal */
export class Models {
  readonly #served = new Map<string, Served>()
  /** Models whose device failed. */
  readonly #lost = new Set<string>()

  add(id: string, dit: DiT): void {
    const { config, vae } = dit
    if (vae === undefined && config.channels !== 1 && config.channels !== 3) {
      throw new DiTError(
        'ERR_DIT_OPTION',
        `The model ${id} makes latents of ${config.channels} channels and has no VAE to make pictures of them: ` +
          "load it with the option vae, such as 'stabilityai/sd-vae-ft-ema'",
      )
    }
    const scale = vae ? downscale(vae) : 1
    const [height, width] = config.latentSize
    this.#served.set(id, {
      id,
      dit,
      classes: new Classes(dit),
      width: width * scale,
      height: height * scale,
      channels: vae?.outChannels ?? config.channels,
      created: Math.floor(Date.now() / 1000),
      identity: () => identify(dit),
    })
  }

  all(): Served[] {
    return [...this.#served.values()]
  }

  /** The first one without a name. Throws 404, or 503 while there is none yet. */
  get(id?: string): Served {
    const [first] = this.#served.values()
    if (first === undefined) {
      throw new HttpError(503, 'ERR_DIT_LOADING', 'The model is being loaded', { retryAfter: 5 })
    }
    const found = id === undefined ? first : this.#served.get(id)
    if (found !== undefined) return found
    const names = [...this.#served.keys()].join(', ')
    throw new HttpError(404, 'model_not_found', `There is no such model. There are: ${names}`)
  }

  /** Nothing more is to be had of this one. */
  lose(id: string): void {
    this.#lost.add(id)
  }

  /** Why requests cannot be answered; undefined when they can. */
  problem(): string | undefined {
    if (this.#served.size === 0) return 'no model is loaded yet'
    for (const { id, dit } of this.all()) {
      if (this.#lost.has(id)) return `the device of ${id} failed`
      if (isClosed(dit)) return `${id} was closed`
    }
    return undefined
  }
}

/** Weights in training change, or did, and nothing tells how often. */
async function identify(dit: DiT): Promise<string | undefined> {
  if (!dit.untouched) return undefined
  try {
    return `${await dit.weightsHash()} ${dit.device} ${dit.precision}`
  } catch (error) {
    if (error instanceof DiTError && error.code === 'ERR_DIT_CLOSED') return undefined
    process.emitWarning(`No images are remembered: ${(error as Error).message}`, 'DiTWarning')
    return undefined
  }
}

function isClosed(dit: DiT): boolean {
  try {
    dit.memory()
    return false
  } catch (error) {
    if (error instanceof DiTError && error.code === 'ERR_DIT_CLOSED') return true
    throw error
  }
}

/** As OpenAI's API shows a model, and what there is to know to ask for images. @internal */
export function describeModel(served: Served, { limits }: Settings): Record<string, unknown> {
  const { id, dit, width, height, channels, created } = served
  const { config } = dit
  return {
    id,
    object: 'model',
    created,
    owned_by: 'dit-native',
    dit: {
      image: { width, height, channels },
      latentSize: config.latentSize,
      latentChannels: config.channels,
      numClasses: config.numClasses,
      nullClass: config.nullClass,
      classNames: Object.keys(dit.classNames).length > 0,
      vae: dit.vae !== undefined,
      device: dit.device,
      precision: dit.precision,
      samplers: ['dpm++', 'ddim', 'ddpm'],
      defaults: {
        sampler: 'dpm++',
        steps: Math.min(25, limits.steps),
        guidance: config.nullClass ? 4 : 1,
      },
      limits: {
        images: limits.images,
        steps: Math.min(limits.steps, dit.schedule.steps),
        priority: limits.priority,
        bodyBytes: limits.bodyBytes,
      },
    },
  }
}
