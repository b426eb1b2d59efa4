import { badFormat, DiTError, show } from '../errors.js'
import { PickleObject } from './pickle.js'
import type { TensorMap } from './tensor.js'
import { TorchTensor } from './torch.js'
import type { WeightsChoice } from './types.js'

/** The weights of a torch file, and what it says about itself. */
export interface Checkpoint {
  readonly tensors: TensorMap
  /** Which weights were taken, when the file has names for them. */
  readonly weights?: WeightsChoice
  /** The training script's arguments, the scalars only. */
  readonly args: ReadonlyMap<string, string | number | boolean>
}

/** Prefixes that DataParallel and torch.compile put before every name. */
const wrappers = ['module.', '_orig_mod.']

/**
 * Finds the weights in the object of a torch file: a bare state dict, `{ model, ema, opt, args }` as
 * the official training script saves it, or `{ state_dict }`.
 *
 * `choice` undefined means the EMA weights where there are any. Throws ERR_DIT_OPTION when the file
 * does not have the weights asked for, ERR_DIT_FORMAT when it has none.
 */
export function selectWeights(file: string, root: unknown, choice?: WeightsChoice): Checkpoint {
  if (!(root instanceof Map)) throw badFormat(file, 'it holds no dictionary of tensors')
  const args = scalars(root.get('args'))
  const sets = (['ema', 'model'] as const).filter((key) => root.get(key) instanceof Map)
  if (sets.length > 0) {
    const weights = choice ?? sets[0]
    if (weights === undefined || !sets.includes(weights)) {
      throw new DiTError(
        'ERR_DIT_OPTION',
        `${file} has no ${show(choice)} weights, only ${show(sets[0])}. Give weights: ${show(sets[0])}`,
      )
    }
    return { tensors: stateDict(file, root.get(weights), ` of ${show(weights)}`), weights, args }
  }
  const nested = root.get('state_dict')
  if (nested instanceof Map) return { tensors: stateDict(file, nested, " of 'state_dict'"), args }
  return { tensors: stateDict(file, root, ''), args }
}

function stateDict(file: string, dictionary: Map<unknown, unknown>, where: string): TensorMap {
  const names = [...dictionary.keys()]
  if (names.length === 0) throw badFormat(file, `the dictionary${where} is empty`)
  let prefix = ''
  for (;;) {
    const start = prefix
    const next = wrappers.find((wrapper) =>
      names.every((name) => typeof name === 'string' && name.startsWith(start + wrapper)),
    )
    if (next === undefined) break
    prefix += next
  }
  const tensors: TensorMap = new Map()
  for (const [name, value] of dictionary) {
    if (typeof name !== 'string' || !(value instanceof TorchTensor)) {
      const known = names.slice(0, 5).map(show).join(', ')
      throw badFormat(
        file,
        `the entry ${show(name)}${where} is no tensor. Expected a dictionary of tensors, or one with ` +
          `'ema' or 'model'; its first keys are ${known}`,
      )
    }
    tensors.set(name.slice(prefix.length), value.part)
  }
  return tensors
}

/** The entries of an argparse.Namespace or a dictionary that are strings, numbers or booleans. */
function scalars(args: unknown): Map<string, string | number | boolean> {
  const found = new Map<string, string | number | boolean>()
  const entries = args instanceof PickleObject ? args.state : args
  if (!(entries instanceof Map)) return found
  for (const [key, value] of entries) {
    if (typeof key !== 'string') continue
    if (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean') {
      found.set(key, value)
    }
  }
  return found
}
