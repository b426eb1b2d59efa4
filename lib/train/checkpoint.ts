// A checkpoint: a folder with the weights, their average, the optimiser's moments and trainer.json.
// It appears whole or not at all, also when the process or the machine stops in the middle.

import { randomBytes } from 'node:crypto'
import { mkdir, rename, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { SaveRequest, TrainerRequest } from '../../bindings.js'
import { DiTError, fileError } from '../errors.js'
import { ditTensors, officialNaming } from '../formats/dit_names.js'
import { exists, sync } from '../formats/file.js'
import { readJson } from '../formats/json.js'
import { layoutTensors, matchTensors } from '../formats/names.js'
import { readSafetensors } from '../formats/safetensors.js'
import { configMetadataKey } from '../formats/source.js'
import type { DiTConfig, TensorSpec } from '../formats/types.js'
import { ownConfig } from '../formats/write.js'
import type { Engine } from '../jobs.js'
import { exchange, saveRequest } from '../save.js'
import { parseState, type TrainedModel, type TrainerState } from './state.js'

/** The files, by what the native part calls their tensors. */
const files = {
  model: 'model.safetensors',
  ema: 'ema.safetensors',
  expAvg: 'exp_avg.safetensors',
  expAvgSq: 'exp_avg_sq.safetensors',
} as const satisfies Partial<Record<SaveRequest['part'], string>>

type Part = keyof typeof files
const parts = Object.keys(files) as Part[]
const stateFile = 'trainer.json'

/** How the name of a folder ends that is not whole yet. @internal */
export const unfinished = '.tmp'

/** What the trainer has for every tensor: the position table is computed. */
function trained(config: DiTConfig): TensorSpec[] {
  return ditTensors(config).filter(({ optional }) => optional !== true)
}

/** Whether there is a checkpoint. @internal */
export function isCheckpoint(folder: string): Promise<boolean> {
  return exists(path.join(folder, stateFile))
}

/**
 * Writes the checkpoint of a model in training. A checkpoint that is there already is replaced; nothing
 * has changed when that fails.
 *
 * Rejects with ERR_DIT_FILE when it cannot be written, or when the folder holds something else.
 *
 * @internal
 */
export async function writeCheckpoint(
  folder: string,
  engine: Engine,
  model: TrainedModel,
  state: TrainerState,
): Promise<void> {
  const whole = path.resolve(folder)
  const part = `${whole}.${process.pid}-${randomBytes(4).toString('hex')}`
  const filled = `${part}${unfinished}`
  try {
    const replaces = await isReplaceable(whole)
    await mkdir(filled, { recursive: true })
    try {
      await fill(filled, engine, model, state)
      if (replaces) await exchange(filled, whole, `${part}.old${unfinished}`)
      else await rename(filled, whole)
    } catch (error) {
      await rm(filled, { recursive: true, force: true })
      throw error
    }
    await sync(path.dirname(whole))
  } catch (cause) {
    throw fileError(folder, 'write', cause)
  }
}

async function fill(
  folder: string,
  engine: Engine,
  model: TrainedModel,
  state: TrainerState,
): Promise<void> {
  const { config, diffusion, classNames } = model
  const hasNames = Object.keys(classNames).length > 0
  const own = ownConfig({ config, schedule: diffusion, ...(hasNames && { id2label: classNames }) })
  const tensors = layoutTensors(trained(config), officialNaming)
  for (const part of parts) {
    const file = path.join(folder, files[part])
    const metadata = { [configMetadataKey]: JSON.stringify(own) }
    await engine.save(saveRequest(file, part, tensors, 'fp32', metadata))
    await sync(file)
  }
  const file = path.join(folder, stateFile)
  await writeFile(file, `${JSON.stringify(state, null, 2)}\n`)
  await sync(file)
  await sync(folder)
}

async function isReplaceable(folder: string): Promise<boolean> {
  if (!(await exists(folder))) return false
  if (await isCheckpoint(folder)) return true
  throw new DiTError(
    'ERR_DIT_FILE',
    `${folder} exists and holds no checkpoint: it is not overwritten. Give another folder, or remove it`,
  )
}

/**
 * Reads what a checkpoint says about itself. Throws ERR_DIT_FILE when there is none, ERR_DIT_FORMAT when
 * it is damaged.
 *
 * @internal
 */
export async function readState(folder: string): Promise<TrainerState> {
  const file = path.join(folder, stateFile)
  const json = await readJson(file)
  if (json !== undefined) return parseState(json, file)
  throw new DiTError(
    'ERR_DIT_FILE',
    `${folder} is no checkpoint of a training: it has no ${stateFile}. Give the folder of one, such as ` +
      'runs/x/checkpoints/latest',
  )
}

/**
 * Finds the tensors of a checkpoint for a model of this size. No tensor is read. Throws as `readState`
 * does.
 *
 * @internal
 */
export async function readTensors(
  folder: string,
  config: DiTConfig,
): Promise<Omit<NonNullable<TrainerRequest['state']>, 'step'>> {
  const specs = trained(config)
  const read = async (part: Part) => {
    const file = path.join(folder, files[part])
    const { tensors } = await readSafetensors(file)
    return matchTensors(file, tensors, specs, officialNaming, []).sources
  }
  return {
    model: await read('model'),
    ema: await read('ema'),
    expAvg: await read('expAvg'),
    expAvgSq: await read('expAvgSq'),
  }
}
