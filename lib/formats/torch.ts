// Files written by torch.save since PyTorch 1.6: a zip archive with stored (uncompressed) entries
//   <name>/data.pkl     the object, with a persistent id in place of each storage
//   <name>/data/<key>   the bytes of one storage
//   <name>/byteorder    'little' (newer versions)
// A tensor is a strided view of a storage; several may share one.

import type { FileHandle } from 'node:fs/promises'
import yauzl from 'yauzl'
import { badFormat, fileError, show } from '../errors.js'
import { checkNotPointer, readFully, withFile } from './file.js'
import { PickleError, PickleGlobal, type PickleHost, PickleObject, parsePickle } from './pickle.js'
import { elementCount } from './tensor.js'
import { type DType, itemSize, type TensorPart } from './types.js'

/** Largest pickle that is read, in bytes. A training checkpoint of DiT-XL/2 has about 300 kB. */
const maxPickleBytes = 16 * 1024 * 1024
/** Most entries of an archive. A training checkpoint of DiT-XL/2 has about 1500. */
const maxEntries = 100_000
/** Most dimensions of a tensor, as in torch. */
const maxDimensions = 64

/** A tensor in the object that `readTorch` returns. */
export class TorchTensor {
  constructor(readonly part: TensorPart) {}
}

/** Bytes of a storage within the file. */
class TorchStorage {
  constructor(
    /** Undefined for an untyped storage, whose tensors bring their own type. */
    readonly dtype: DType | undefined,
    /** Elements; bytes when untyped. */
    readonly count: number,
    readonly offset: number,
  ) {}
}

const storageTypes: Record<string, DType | 'untyped'> = {
  'torch.DoubleStorage': 'F64',
  'torch.FloatStorage': 'F32',
  'torch.HalfStorage': 'F16',
  'torch.BFloat16Storage': 'BF16',
  'torch.LongStorage': 'I64',
  'torch.IntStorage': 'I32',
  'torch.ShortStorage': 'I16',
  'torch.CharStorage': 'I8',
  'torch.ByteStorage': 'U8',
  'torch.BoolStorage': 'BOOL',
  'torch.UntypedStorage': 'untyped',
  'torch.storage.UntypedStorage': 'untyped',
}
const dtypes: Record<string, DType> = {
  'torch.float64': 'F64',
  'torch.float32': 'F32',
  'torch.float16': 'F16',
  'torch.bfloat16': 'BF16',
  'torch.float8_e4m3fn': 'F8_E4M3',
  'torch.float8_e5m2': 'F8_E5M2',
  'torch.int64': 'I64',
  'torch.int32': 'I32',
  'torch.int16': 'I16',
  'torch.int8': 'I8',
  'torch.uint64': 'U64',
  'torch.uint32': 'U32',
  'torch.uint16': 'U16',
  'torch.uint8': 'U8',
  'torch.bool': 'BOOL',
}

/**
 * Reads the object in a torch file. Dictionaries are Maps, tensors `TorchTensor`s whose bytes were
 * not read; nothing that the pickle names is looked up or executed, and names outside a short list
 * are refused.
 *
 * Throws ERR_DIT_FILE when the file cannot be read, ERR_DIT_FORMAT for anything else: damage, a
 * compressed archive, the format older than PyTorch 1.6, a name that is not on the list.
 *
 * @example
 * const checkpoint = await readTorch('DiT-XL-2-256x256.pt')
 * if (checkpoint instanceof Map) console.log([...checkpoint.keys()])
 */
export async function readTorch(file: string): Promise<unknown> {
  try {
    return await withFile(file, (handle) => readOpen(file, handle))
  } catch (cause) {
    throw fileError(file, 'read', cause)
  }
}

async function readOpen(file: string, handle: FileHandle): Promise<unknown> {
  const { size } = await handle.stat()
  const start = await readFully(handle, file, 0, Math.min(64, size))
  checkStart(start, file)
  const { root, entries } = await readArchive(file, handle, size)
  const pickle = entries.get('data.pkl')
  if (pickle === undefined) throw badFormat(file, 'the archive has no data.pkl: not a torch file')
  if (pickle.bytes > maxPickleBytes) {
    throw badFormat(file, `data.pkl has ${pickle.bytes} bytes; at most ${maxPickleBytes} are read`)
  }
  const order = entries.get('byteorder')
  if (order !== undefined) {
    const text = (await readFully(handle, file, order.offset, Math.min(order.bytes, 16))).toString()
    if (text !== 'little') throw badFormat(file, `the byte order is ${show(text)}, not 'little'`)
  }
  const bytes = await readFully(handle, file, pickle.offset, pickle.bytes)
  return unpickle(file, root, bytes, entries)
}

/** What is no zip archive gets a message of its own. */
function checkStart(start: Buffer, file: string): void {
  if (start.subarray(0, 2).toString('latin1') === 'PK') return
  checkNotPointer(start, file)
  // A pickle of torch's magic number 0x1950a86a20f9469cfc6c: protocol, LONG1, 10 bytes.
  if (start.includes(Buffer.from('8a0a6cfc9c46f9206aa85019', 'hex'))) {
    throw badFormat(
      file,
      'this is the format that torch.save wrote before PyTorch 1.6, which is not read. Convert it ' +
        "with PyTorch 1.6 or later: torch.save(torch.load('old.pt', map_location='cpu'), 'new.pt')",
    )
  }
  throw badFormat(file, 'this is no torch file: it does not start as a zip archive does')
}

/**
 * yauzl's way to the file. Its own reader passes any position of the archive to fs.read, which throws
 * in a callback, out of reach, for one beyond 2^53.
 */
class Reader extends yauzl.RandomAccessReader {
  constructor(
    private readonly handle: FileHandle,
    private readonly size: number,
  ) {
    super()
  }

  override read(
    buffer: Buffer,
    offset: number,
    length: number,
    position: number,
    callback: (error: Error | null, bytesRead?: number) => void,
  ): void {
    if (position + length > this.size) {
      callback(new Error(`it refers to byte ${position + length} of ${this.size}`))
      return
    }
    this.handle.read(buffer, offset, length, position).then(
      ({ bytesRead }) => callback(null, bytesRead),
      (error: Error) => callback(error),
    )
  }
}

interface Entry {
  /** From the start of the file to the entry's first byte. */
  offset: number
  bytes: number
}

/** The entries under the archive's one folder (`root`), by their names in it. */
async function readArchive(
  file: string,
  handle: FileHandle,
  size: number,
): Promise<{ root: string; entries: Map<string, Entry> }> {
  let zip: yauzl.ZipFile
  try {
    zip = await yauzl.fromRandomAccessReaderPromise(new Reader(handle, size), size, {
      autoClose: false,
    })
  } catch (cause) {
    throw badFormat(
      file,
      `the zip archive is damaged or cut off: ${(cause as Error).message}`,
      cause,
    )
  }
  const listed = await listEntries(file, zip)
  const pickles = [...listed.keys()].filter((name) => /^[^/]*\/data\.pkl$/.test(name))
  const root = pickles[0]?.slice(0, -'data.pkl'.length)
  if (root === undefined) throw badFormat(file, 'the archive has no data.pkl: not a torch file')
  if (pickles.length > 1) throw badFormat(file, 'the archive has more than one data.pkl')
  const entries = new Map<string, Entry>()
  for (const [name, entry] of listed) {
    const short = name.slice(root.length)
    if (!name.startsWith(root) || !/^(data\.pkl|byteorder|data\/.+)$/.test(short)) continue
    if (entry.compressionMethod !== 0 || entry.isEncrypted()) {
      throw badFormat(
        file,
        `the entry ${show(name)} is compressed or encrypted; weights are read in place, so the ` +
          'archive must be stored as torch.save writes it. Save it again with torch.save',
      )
    }
    try {
      const { fileDataStart } = await zip.readLocalFileHeaderPromise(entry, { minimal: true })
      entries.set(short, { offset: fileDataStart, bytes: entry.compressedSize })
    } catch (cause) {
      throw badFormat(
        file,
        `the entry ${show(name)} is damaged: ${(cause as Error).message}`,
        cause,
      )
    }
  }
  return { root, entries }
}

function listEntries(file: string, zip: yauzl.ZipFile): Promise<Map<string, yauzl.Entry>> {
  const entries = new Map<string, yauzl.Entry>()
  return new Promise((resolve, reject) => {
    zip.on('error', (cause: Error) =>
      reject(badFormat(file, `the zip archive is damaged: ${cause.message}`, cause)),
    )
    zip.on('end', () => resolve(entries))
    zip.on('entry', (entry: yauzl.Entry) => {
      if (entries.has(entry.fileName)) {
        reject(badFormat(file, `the archive has the entry ${show(entry.fileName)} twice`))
      } else if (entries.size >= maxEntries) {
        reject(badFormat(file, `the archive has more than ${maxEntries} entries`))
      } else {
        entries.set(entry.fileName, entry)
        zip.readEntry()
      }
    })
    zip.readEntry()
  })
}

function unpickle(
  file: string,
  root: string,
  bytes: Uint8Array,
  entries: Map<string, Entry>,
): unknown {
  try {
    return parsePickle(bytes, new TorchHost(file, entries))
  } catch (cause) {
    if (!(cause instanceof PickleError)) throw cause
    throw badFormat(file, `${root}data.pkl: ${cause.message}`, cause)
  }
}

/** The list of what a torch file may name, and the inert values that it makes. */
class TorchHost implements PickleHost {
  private readonly storages = new Map<string, TorchStorage>()

  constructor(
    private readonly file: string,
    private readonly entries: Map<string, Entry>,
  ) {}

  global(module: string, name: string): PickleGlobal {
    const full = `${module}.${name}`
    const known = Object.hasOwn(calls, full) || Object.hasOwn(dtypes, full)
    if (known || Object.hasOwn(storageTypes, full)) return new PickleGlobal(full)
    throw new PickleError(
      `it names ${show(full)}, which is not on the list of what a checkpoint may hold. Nothing was ` +
        "executed. Save the weights alone: torch.save(model.state_dict(), 'weights.pt')",
    )
  }

  call(target: PickleGlobal, args: readonly unknown[]): unknown {
    const call = Object.hasOwn(calls, target.name) ? calls[target.name] : undefined
    if (call === undefined) throw new PickleError(`it calls ${show(target.name)}`)
    return call(args, this.file)
  }

  /** `('storage', type, key, location, number of elements)` */
  persistent(id: unknown): TorchStorage {
    const [tag, type, key, , count] = Array.isArray(id) ? id : []
    if (tag !== 'storage' || !(type instanceof PickleGlobal) || typeof key !== 'string') {
      throw new PickleError('it has a persistent id that is no storage')
    }
    if (!isSize(count)) throw new PickleError(`the storage ${show(key)} has no valid length`)
    const dtype = Object.hasOwn(storageTypes, type.name) ? storageTypes[type.name] : undefined
    if (dtype === undefined) throw new PickleError(`${show(type.name)} is no storage`)
    const known = this.storages.get(key)
    const typed = dtype === 'untyped' ? undefined : dtype
    if (known?.dtype === typed && known?.count === count) return known
    const entry = this.entries.get(`data/${key}`)
    if (entry === undefined) throw new PickleError(`the archive lacks its storage ${show(key)}`)
    const needed = count * (typed === undefined ? 1 : itemSize[typed])
    if (needed > entry.bytes) {
      throw new PickleError(
        `the storage ${show(key)} should have ${needed} bytes but the archive has ${entry.bytes} of it`,
      )
    }
    const storage = new TorchStorage(typed, count, entry.offset)
    this.storages.set(key, storage)
    return storage
  }
}

const rebuildTensor = (args: readonly unknown[], file: string) => {
  const [storage, offset, size, stride, , , metadata] = args
  checkPlain(metadata)
  return viewOf(file, storage, undefined, offset, size, stride)
}
const inert = (type: string) => (args: readonly unknown[]) => new PickleObject(type, args)
const firstOf = ([data]: readonly unknown[]) => {
  if (!(data instanceof TorchTensor)) throw new PickleError('it has a parameter that is no tensor')
  return data
}

/** What may be called or constructed, by its Python name. */
const calls: Record<string, (args: readonly unknown[], file: string) => unknown> = {
  'torch._utils._rebuild_tensor': rebuildTensor,
  'torch._utils._rebuild_tensor_v2': rebuildTensor,
  'torch._utils._rebuild_tensor_v3': (args, file) => {
    const [storage, offset, size, stride, , , type, metadata] = args
    checkPlain(metadata)
    const dtype = type instanceof PickleGlobal ? dtypes[type.name] : undefined
    if (dtype === undefined) throw new PickleError('it has a tensor without a known dtype')
    return viewOf(file, storage, dtype, offset, size, stride)
  },
  'torch._utils._rebuild_parameter': firstOf,
  'torch._utils._rebuild_parameter_with_state': firstOf,
  'torch.Size': ([sizes]) => sizes,
  'collections.OrderedDict': (args) => {
    // Python sets the items afterwards.
    if (args.length > 0) throw new PickleError('it makes an OrderedDict from arguments')
    return new Map()
  },
  // Kept as they are. Protocol 2 writes sets and bytes as calls.
  'argparse.Namespace': inert('argparse.Namespace'),
  'torch.device': inert('torch.device'),
  '__builtin__.set': inert('set'),
  'builtins.set': inert('set'),
  '_codecs.encode': inert('bytes'),
}

/** A view with a lazily negated or conjugated storage is not what its bytes say. */
function checkPlain(metadata: unknown): void {
  if (metadata instanceof Map && (metadata.get('neg') || metadata.get('conj'))) {
    throw new PickleError(
      'it has a lazily negated or conjugated tensor. Save a copy: tensor.clone()',
    )
  }
}

function viewOf(
  file: string,
  storage: unknown,
  dtype: DType | undefined,
  offset: unknown,
  size: unknown,
  stride: unknown,
): TorchTensor {
  if (!(storage instanceof TorchStorage)) throw new PickleError('it has a tensor without a storage')
  if (!isSize(offset) || !isSizes(size) || !isSizes(stride) || size.length !== stride.length) {
    throw new PickleError('it has a tensor with an invalid offset, shape or stride')
  }
  const type = storage.dtype ?? dtype
  if (type === undefined) throw new PickleError('it has a tensor without a dtype')
  const count =
    storage.dtype === undefined ? Math.floor(storage.count / itemSize[type]) : storage.count
  if (!Number.isSafeInteger(elementCount(size)))
    throw new PickleError(`the shape [${size}] is too large`)
  // The last element's index bounds all others: strides are not negative.
  const last = size.reduce((index, n, i) => index + (n - 1) * (stride[i] ?? 0), offset)
  if (elementCount(size) > 0 && last >= count) {
    throw new PickleError(
      `a tensor of shape [${size}], stride [${stride}], offset ${offset} reaches beyond its storage of ` +
        `${count} elements`,
    )
  }
  return new TorchTensor({
    file,
    offset: storage.offset + offset * itemSize[type],
    dtype: type,
    // Copies: the pickle could change its own lists after they were checked.
    shape: [...size],
    strides: [...stride],
  })
}

function isSize(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.length <= maxDimensions && value.every(isSize)
}
