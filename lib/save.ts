// `dit.save`: headers and JSON from here, the tensors from the native part, which has them.

import { randomBytes } from 'node:crypto'
import { mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { ModelSpec, SaveRequest } from '../bindings.js'
import { DiTError, fileError } from './errors.js'
import type { SavedTensor } from './formats/names.js'
import { safetensorsLayout } from './formats/safetensors.js'
import { configMetadataKey } from './formats/source.js'
import type { TensorSource } from './formats/types.js'
import {
  diffusersConfigs,
  diffusersTensors,
  diffusersVaeTensors,
  officialTensors,
  ownConfig,
  type SavedModel,
} from './formats/write.js'
import type { Engine } from './jobs.js'
import type { ClassNames } from './labels.js'
import type { SaveOptions } from './options.js'

/** What is saved. @internal */
export interface Saved {
  spec: ModelSpec
  classNames: ClassNames
  /** Whether the weights are others than those that were loaded. */
  trained: boolean
}

/** @internal */
export async function saveModel(
  engine: Engine,
  { spec, classNames, trained }: Saved,
  target: string,
  { dtype, vae = true }: SaveOptions,
): Promise<void> {
  const { config, tensors } = spec.dit
  const decoder = vae ? spec.vae : null
  const model: SavedModel = {
    config,
    schedule: spec.schedule,
    ...(decoder && { vae: decoder.config }),
    ...(Object.keys(classNames).length > 0 && { id2label: classNames }),
  }
  // A model that was loaded without a position table (it is computed) is saved without one.
  const has = new Set(tensors?.map(({ name }) => name))
  const present = (all: SavedTensor[]) =>
    all.filter(({ from }) => tensors === null || has.has(from))
  const isAsStored = !trained && spec.dit.stored === null
  const ditType = dtype ?? (isAsStored ? storedType(tensors) : 'fp32')

  if (target.endsWith('.safetensors')) {
    const saved = present(officialTensors(config))
    const metadata = { [configMetadataKey]: JSON.stringify(ownConfig(model)) }
    await engine.save(saveRequest(target, 'dit', saved, ditType, metadata))
    return
  }
  await writeFolder(target, async (folder) => {
    const weights = (component: string) =>
      path.join(folder, component, 'diffusion_pytorch_model.safetensors')
    for (const [file, json] of Object.entries(diffusersConfigs(model))) {
      await mkdir(path.dirname(path.join(folder, file)), { recursive: true })
      await writeFile(path.join(folder, file), `${JSON.stringify(json, null, 2)}\n`)
    }
    const saved = present(diffusersTensors(config))
    await engine.save(saveRequest(weights('transformer'), 'dit', saved, ditType))
    if (decoder) {
      const vaeType = dtype ?? storedType(decoder.tensors)
      const all = diffusersVaeTensors(decoder.config)
      await engine.save(saveRequest(weights('vae'), 'vae', all, vaeType))
    }
  })
}

/** bf16 when all tensors came as bf16, else fp32: what holds them without loss (fp64 apart). */
function storedType(tensors: readonly TensorSource[] | null): 'fp32' | 'bf16' {
  const parts = tensors?.flatMap((tensor) => tensor.parts) ?? []
  return parts.length > 0 && parts.every((part) => part.dtype === 'BF16') ? 'bf16' : 'fp32'
}

/** @internal */
export function saveRequest(
  file: string,
  part: SaveRequest['part'],
  tensors: readonly SavedTensor[],
  type: 'fp32' | 'bf16',
  metadata: Record<string, string> = {},
): SaveRequest {
  const dtype = type === 'bf16' ? 'BF16' : 'F32'
  const { header } = safetensorsLayout(
    tensors.map(({ name, shape }) => ({ name, shape, dtype })),
    { format: 'pt', ...metadata },
  )
  return {
    path: file,
    header,
    part,
    tensors: tensors.map(({ from, rows: [rowBegin, rowEnd] }) => {
      return { name: from, rowBegin, rowEnd, dtype }
    }),
  }
}

/**
 * Fills a folder beside the target and then puts it in the target's place. An older model there is
 * replaced; it stays until the new one is complete.
 */
async function writeFolder(target: string, fill: (folder: string) => Promise<void>): Promise<void> {
  const whole = path.resolve(target)
  const unique = `${whole}.${process.pid}-${randomBytes(4).toString('hex')}`
  const folder = `${unique}.new`
  try {
    const replaces = await isReplaceable(whole)
    await mkdir(folder, { recursive: true })
    try {
      await fill(folder)
      if (replaces) await exchange(folder, whole, `${unique}.old`)
      else await rename(folder, whole)
    } catch (error) {
      await rm(folder, { recursive: true, force: true })
      throw error
    }
  } catch (cause) {
    throw fileError(target, 'write', cause)
  }
}

/** Puts `folder` in the place of `target`, which is removed; nothing has changed when that fails. @internal */
export async function exchange(folder: string, target: string, aside: string): Promise<void> {
  await rename(target, aside)
  try {
    await rename(folder, target)
  } catch (error) {
    await rename(aside, target)
    throw error
  }
  await rm(aside, { recursive: true })
}

/** Whether the target is a folder that may be replaced: an empty one, or a model of this layout. */
async function isReplaceable(target: string): Promise<boolean> {
  let entries: string[]
  try {
    entries = await readdir(target)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw cause
  }
  if (entries.length === 0 || entries.includes('model_index.json')) return true
  throw new DiTError(
    'ERR_DIT_FILE',
    `${target} is a folder that holds no model (${entries.slice(0, 3).join(', ')}, …): it is not ` +
      'overwritten. Give another target, or remove it',
  )
}
