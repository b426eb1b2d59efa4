// Torch files made by hand: stored zip archives, and pickles opcode by opcode.

/** A zip archive with stored entries. */
export function zip(entries: Record<string, Uint8Array | string>): Buffer {
  const locals: Buffer[] = []
  const directory: Buffer[] = []
  let offset = 0
  for (const [name, content] of Object.entries(entries)) {
    const bytes = Buffer.from(content)
    const sizes = Buffer.alloc(12) // the CRC, which is not looked at, and both sizes
    sizes.writeUInt32LE(bytes.length, 4)
    sizes.writeUInt32LE(bytes.length, 8)
    const names = Buffer.from(name)
    const lengths = Buffer.from([names.length & 255, names.length >> 8, 0, 0])
    const start = Buffer.from([20, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    const at = Buffer.alloc(4)
    at.writeUInt32LE(offset)
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), start, sizes, lengths, names, bytes])
    directory.push(
      Buffer.concat([
        Buffer.from('PK\x01\x02\x14\x00', 'latin1'),
        start,
        sizes,
        lengths,
        Buffer.alloc(10), // comment, disk, attributes
        at,
        names,
      ]),
    )
    locals.push(local)
    offset += local.length
  }
  const end = Buffer.alloc(22)
  end.write('PK\x05\x06', 'latin1')
  end.writeUInt16LE(directory.length, 8)
  end.writeUInt16LE(directory.length, 10)
  end.writeUInt32LE(Buffer.concat(directory).length, 12)
  end.writeUInt32LE(offset, 16)
  return Buffer.concat([...locals, ...directory, end])
}

type Piece = string | number | Uint8Array

/** A pickle of protocol 2 from opcodes (strings, as latin1), bytes (numbers) and raw bytes, and STOP. */
export function pickle(...pieces: Piece[]): Buffer {
  return Buffer.concat([Buffer.from([0x80, 2]), ...pieces.map(bytesOf), Buffer.from('.')])
}

function bytesOf(piece: Piece): Uint8Array {
  if (typeof piece === 'string') return Buffer.from(piece, 'latin1')
  return typeof piece === 'number' ? Buffer.from([piece]) : piece
}

/** BINUNICODE */
export function text(value: string): Buffer {
  const bytes = Buffer.from(value)
  const head = Buffer.alloc(5)
  head.write('X')
  head.writeUInt32LE(bytes.length, 1)
  return Buffer.concat([head, bytes])
}

/** BININT */
export function int(value: number): Buffer {
  const bytes = Buffer.alloc(5)
  bytes.write('J')
  bytes.writeInt32LE(value, 1)
  return bytes
}

/** GLOBAL */
export function global(module: string, name: string): Buffer {
  return Buffer.from(`c${module}\n${name}\n`)
}

/** A tuple of already pickled values. */
export function tuple(...items: Uint8Array[]): Buffer {
  return Buffer.concat([Buffer.from('('), ...items, Buffer.from('t')])
}

/** A storage by its persistent id. */
export function storage(type: string, key: string, count: number): Buffer {
  const [module = '', name = ''] = type.split(/\.(?=\w+$)/)
  const id = [text('storage'), global(module, name), text(key), text('cpu'), int(count)]
  return Buffer.concat([tuple(...id), Buffer.from('Q')])
}

/** A tensor made by `torch._utils._rebuild_tensor_v2`. */
export function tensor(from: Uint8Array, offset: number, size: number[], stride: number[]): Buffer {
  const args = [from, int(offset), tuple(...size.map(int)), tuple(...stride.map(int))]
  const rest = [Buffer.from([0x89]), Buffer.from('}')]
  return Buffer.concat([
    global('torch._utils', '_rebuild_tensor_v2'),
    tuple(...args, ...rest),
    Buffer.from('R'),
  ])
}

/** A dictionary of already pickled values. */
export function dictionary(items: Record<string, Uint8Array>): Buffer {
  const pairs = Object.entries(items).flatMap(([key, value]) => [text(key), value])
  return Buffer.concat([Buffer.from('}('), ...pairs, Buffer.from('u')])
}

/** A torch file of a pickle and its storages. */
export function torchFile(data: Uint8Array, storages: Record<string, Uint8Array> = {}): Buffer {
  const stored = Object.entries(storages).map(([key, bytes]) => [`archive/data/${key}`, bytes])
  return zip({ 'archive/data.pkl': data, ...Object.fromEntries(stored), 'archive/version': '3\n' })
}
