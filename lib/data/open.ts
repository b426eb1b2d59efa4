// Training data of every kind, opened.

import { stat } from 'node:fs/promises'
import path from 'node:path'
import { DiTError, fileError, invalidOption } from '../errors.js'
import { isFeatureFolder } from './feature_files.js'
import { openFeatures } from './feature_folder.js'
import { isIdxFolder, openIdx } from './idx.js'
import { openImageFolder } from './image_folder.js'
import { openItems } from './items.js'
import { assemble, type Source } from './pipeline.js'
import type { OpenData, OpenDataOptions, TrainingData } from './types.js'

/**
 * Opens training data for a model.
 *
 * Rejects with ERR_DIT_FILE when a folder or file is missing, cannot be read, or a class folder is
 * empty; ERR_DIT_FORMAT when a file that all depends on is damaged; ERR_DIT_OPTION when the data is no
 * training data or has more classes than the model; ERR_DIT_SHAPE when it does not fit the model's size.
 * Batches reject with ERR_DIT_FORMAT for a damaged item (with `onBadItem: 'error'`) or when none can be
 * used, with ERR_DIT_OPTION for a wrong label, with `signal.reason` after an abort.
 *
 * @internal
 *
 * @example
 * const data = await openData('photos', { model, onBadItem: 'skip' })
 * for await (const { x, labels } of data.batches({ batchSize: 32, seed: 1n, position: 0, flip: true })) {
 *   console.log(x.length, labels)
 * }
 */
export async function openData(data: TrainingData, options: OpenDataOptions): Promise<OpenData> {
  options.signal?.throwIfAborted()
  const source =
    typeof data === 'string' ? await openFolder(data, options) : await openItems(data, options)
  const { ahead: _, turns: __, ...facts } = source
  return { ...facts, batches: (batch) => assemble(source, options.onBadItem, batch) }
}

async function openFolder(folder: string, options: OpenDataOptions): Promise<Source> {
  if (folder === '') throw invalidOption('data', 'a path', folder)
  await expectFolder(folder)
  if (await isFeatureFolder(folder)) return openFeatures(folder, options)
  if (await isIdxFolder(folder)) return openIdx(folder, options)
  return openImageFolder(folder, options)
}

async function expectFolder(folder: string): Promise<void> {
  const found = await stat(folder).catch((cause) => {
    throw fileError(path.resolve(folder), 'read', cause)
  })
  if (found.isDirectory()) return
  throw new DiTError('ERR_DIT_FILE', `Expected a folder of training data but ${folder} is a file`)
}
