// A virtual machine for the pickles inside torch files: protocols 2 to 5, the opcodes that Python's
// pickler emits. It never looks a global up and never calls anything: what a pickle would import or
// call goes to a `PickleHost`, which answers with inert values or refuses.
//
// Work and memory are bounded by the pickle's length: every opcode makes at most one small object,
// strings and bytes lie in the input, and nothing here recurses.

/** A module-level name that the pickle refers to. Nothing is looked up. */
export class PickleGlobal {
  /** @param name `module.name` */
  constructor(readonly name: string) {}
}

/** An instance of a class that means nothing to us, kept as data. */
export class PickleObject {
  /** Its attributes. */
  state: ReadonlyMap<unknown, unknown> = new Map()
  constructor(
    readonly type: string,
    readonly args: readonly unknown[],
  ) {}
}

/** Why a pickle was refused; the caller adds the file's name. */
export class PickleError extends Error {
  override readonly name = 'PickleError'
}

export interface PickleHost {
  /** What `module.name` stands for. Throws PickleError to refuse it. */
  global(module: string, name: string): PickleGlobal
  /** The result of "calling" or "constructing" a global. */
  call(target: PickleGlobal, args: readonly unknown[]): unknown
  /** The object that a persistent id stands for. */
  persistent(id: unknown): unknown
}

/** Most opcodes of one pickle. A training checkpoint of DiT-XL/2 has about 60 000. */
const maxOpcodes = 1_000_000
/** Most bytes of one integer. */
const maxIntegerBytes = 64

/**
 * The value of a pickle. Lists and tuples become arrays, dictionaries Maps (of any key), sets Sets,
 * integers numbers (bigints where a number is not exact), bytes Uint8Arrays, None null.
 *
 * Throws PickleError when the pickle is damaged, needs an opcode that is not supported, or when the
 * host refuses something.
 */
export function parsePickle(bytes: Uint8Array, host: PickleHost): unknown {
  return new Machine(bytes, host).run()
}

/** What an opcode pushes that pushes nothing; no value of a pickle. */
const nothing = Symbol('nothing')

class Machine {
  private readonly view: DataView
  private readonly utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
  private position = 0
  private readonly stack: unknown[] = []
  private readonly marks: number[] = [] // heights of the stack
  private readonly memo = new Map<number, unknown>()

  constructor(
    private readonly bytes: Uint8Array,
    private readonly host: PickleHost,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  run(): unknown {
    for (let count = 0; count < maxOpcodes; ++count) {
      const opcode = this.u8()
      if (opcode === 0x2e) return this.pop() // STOP
      const value = this.execute(opcode)
      if (value !== nothing) this.stack.push(value)
    }
    throw new PickleError(`it has more than ${maxOpcodes} opcodes`)
  }

  /** Executes one opcode: returns the value that it pushes, or `nothing`. */
  private execute(opcode: number): unknown {
    switch (opcode) {
      case 0x80: {
        const protocol = this.u8()
        if (protocol < 2 || protocol > 5)
          throw new PickleError(`protocol ${protocol} is not supported`)
        break
      }
      case 0x95: // FRAME: a length, of use to a reader of streams only
        this.take(8)
        break

      case 0x4e: // NONE
        return null
      case 0x88: // NEWTRUE
        return true
      case 0x89: // NEWFALSE
        return false
      case 0x4b: // BININT1
        return this.u8()
      case 0x4d: // BININT2
        return this.view.getUint16(this.take(2), true)
      case 0x4a: // BININT
        return this.view.getInt32(this.take(4), true)
      case 0x8a: // LONG1
        return this.integer(this.u8())
      case 0x8b: // LONG4
        return this.integer(this.u32())
      case 0x47: // BINFLOAT, big-endian
        return this.view.getFloat64(this.take(8))

      case 0x8c: // SHORT_BINUNICODE
        return this.text(this.u8())
      case 0x58: // BINUNICODE
        return this.text(this.u32())
      case 0x8d: // BINUNICODE8
        return this.text(this.u64())
      case 0x43: // SHORT_BINBYTES
        return this.data(this.u8())
      case 0x42: // BINBYTES
        return this.data(this.u32())
      case 0x8e: // BINBYTES8
      case 0x96: // BYTEARRAY8
        return this.data(this.u64())

      case 0x28: // MARK
        this.marks.push(this.stack.length)
        break
      case 0x30: // POP
        this.pop()
        break
      case 0x31: // POP_MARK
        this.popMark()
        break
      case 0x32: // DUP
        return this.top()

      case 0x29: // EMPTY_TUPLE
      case 0x5d: // EMPTY_LIST
        return []
      case 0x74: // TUPLE
        return this.popMark()
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: // TUPLE3
        return this.popMany(opcode - 0x84)
      case 0x61: // APPEND
        this.append([this.pop()])
        break
      case 0x65: // APPENDS
        this.append(this.popMark())
        break
      case 0x7d: // EMPTY_DICT
        return new Map()
      case 0x73: // SETITEM
        this.setItems(this.popMany(2))
        break
      case 0x75: // SETITEMS
        this.setItems(this.popMark())
        break
      case 0x8f: // EMPTY_SET
        return new Set()
      case 0x90: // ADDITEMS
        this.addItems(this.popMark())
        break
      case 0x91: // FROZENSET
        return new Set(this.popMark())

      case 0x71: // BINPUT
        this.memo.set(this.u8(), this.top())
        break
      case 0x72: // LONG_BINPUT
        this.memo.set(this.u32(), this.top())
        break
      case 0x94: // MEMOIZE
        this.memo.set(this.memo.size, this.top())
        break
      case 0x68: // BINGET
        return this.recall(this.u8())
      case 0x6a: // LONG_BINGET
        return this.recall(this.u32())

      case 0x63: // GLOBAL
        return this.host.global(this.line(), this.line())
      case 0x93: {
        // STACK_GLOBAL
        const [module, name] = this.popMany(2)
        if (typeof module !== 'string' || typeof name !== 'string') {
          throw new PickleError('it refers to a global whose name is not a string')
        }
        return this.host.global(module, name)
      }
      case 0x52: // REDUCE
      case 0x81: {
        // NEWOBJ
        const [target, args] = this.popMany(2)
        return this.call(target, args)
      }
      case 0x92: {
        // NEWOBJ_EX: with keyword arguments, which none of the known classes has
        const [target, args, keywords] = this.popMany(3)
        if (!(keywords instanceof Map) || keywords.size > 0) {
          throw new PickleError('it constructs an object with keyword arguments')
        }
        return this.call(target, args)
      }
      case 0x62: // BUILD
        this.build(this.pop())
        break
      case 0x51: // BINPERSID
        return this.host.persistent(this.pop())

      default:
        throw new PickleError(
          `the opcode 0x${opcode.toString(16).padStart(2, '0')} at byte ${this.position - 1} is not supported`,
        )
    }
    return nothing
  }

  private call(target: unknown, args: unknown): unknown {
    if (!(target instanceof PickleGlobal))
      throw new PickleError('it calls something that is no global')
    if (!Array.isArray(args)) throw new PickleError(`it calls ${target.name} without a tuple`)
    return this.host.call(target, args)
  }

  /** An object's attributes. Those of a dictionary (torch's `_metadata`) have no use and are dropped. */
  private build(state: unknown): void {
    const target = this.top()
    if (target instanceof Map) return
    if (!(target instanceof PickleObject) || !(state instanceof Map)) {
      throw new PickleError('it sets the state of something that is no plain object')
    }
    target.state = state
  }

  private append(items: unknown[]): void {
    const list = this.top()
    if (!Array.isArray(list)) throw new PickleError('it appends to something that is no list')
    for (const item of items) list.push(item)
  }

  private setItems(items: unknown[]): void {
    const target = this.top()
    if (!(target instanceof Map))
      throw new PickleError('it sets items of something that is no dictionary')
    if (items.length % 2 !== 0) throw new PickleError('it sets a dictionary key without a value')
    for (let i = 0; i < items.length; i += 2) target.set(items[i], items[i + 1])
  }

  private addItems(items: unknown[]): void {
    const target = this.top()
    if (!(target instanceof Set)) throw new PickleError('it adds items to something that is no set')
    for (const item of items) target.add(item)
  }

  /** The lowest height that the stack may have: what lies below the last mark is out of reach. */
  private floor(): number {
    return this.marks.at(-1) ?? 0
  }

  private top(): unknown {
    if (this.stack.length <= this.floor()) throw new PickleError('its stack is empty')
    return this.stack.at(-1)
  }

  private pop(): unknown {
    const value = this.top()
    this.stack.pop()
    return value
  }

  private popMany(count: number): unknown[] {
    if (this.stack.length - count < this.floor()) throw new PickleError('its stack is empty')
    return this.stack.splice(this.stack.length - count)
  }

  private popMark(): unknown[] {
    const mark = this.marks.pop()
    if (mark === undefined) throw new PickleError('its stack has no mark')
    return this.stack.splice(mark)
  }

  private recall(key: number): unknown {
    if (!this.memo.has(key))
      throw new PickleError(`it recalls the value ${key}, which it never stored`)
    return this.memo.get(key)
  }

  /** The position of the next `length` bytes, which it skips. */
  private take(length: number): number {
    const start = this.position
    if (length > this.bytes.length - start) {
      throw new PickleError(`it ends at byte ${this.bytes.length}, in the middle of a value`)
    }
    this.position += length
    return start
  }

  private u8(): number {
    return this.view.getUint8(this.take(1))
  }

  private u32(): number {
    return this.view.getUint32(this.take(4), true)
  }

  private u64(): number {
    return Number(this.view.getBigUint64(this.take(8), true))
  }

  private data(length: number): Uint8Array {
    const start = this.take(length)
    return this.bytes.subarray(start, start + length)
  }

  private text(length: number): string {
    try {
      return this.utf8.decode(this.data(length))
    } catch (cause) {
      if (cause instanceof PickleError) throw cause
      throw new PickleError('a string in it is not UTF-8', { cause })
    }
  }

  private line(): string {
    const end = this.bytes.indexOf(0x0a, this.position)
    if (end < 0) throw new PickleError('it ends in the middle of a name')
    const line = this.text(end - this.position)
    this.take(1)
    return line
  }

  /** A two's complement, little-endian integer. */
  private integer(length: number): number | bigint {
    if (length > maxIntegerBytes) throw new PickleError(`it has an integer of ${length} bytes`)
    let value = 0n
    for (const byte of this.data(length).toReversed()) value = (value << 8n) | BigInt(byte)
    value = BigInt.asIntN(8 * length, value)
    const number = Number(value)
    return Number.isSafeInteger(number) ? number : value
  }
}
