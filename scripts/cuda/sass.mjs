// The machine code of a CUDA library as cuobjdump prints it, by kernel: instructions, main loops, and
// what breaks the rules of rules.mjs.
import { execFileSync, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { rules } from './rules.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '')

/** Where scripts/cuda-sass.mjs --fetch puts what the toolkit here lacks. */
export const fetchedTools = path.join(root, 'build/cuda-tools')

/** cuobjdump, with nvdisasm beside it or on the PATH; undefined where there is none. */
export function findCuobjdump() {
  const folders = [
    ...(process.env.PATH ?? '').split(path.delimiter),
    '/usr/local/cuda/bin',
    fetchedTools,
  ]
  const has = (folder) =>
    existsSync(path.join(folder, 'cuobjdump')) && existsSync(path.join(folder, 'nvdisasm'))
  const folder = folders.find(has)
  return folder && path.join(folder, 'cuobjdump')
}

/** Names as they stand in the sources, without the namespaces that all of them have, or parameters. */
export function demangle(names) {
  if (names.length === 0) return []
  const plain = execFileSync('c++filt', {
    input: names.join('\n'),
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  })
  return plain.split('\n').map((name) => {
    const short = name.replaceAll(/\(anonymous namespace\)::|dit::cuda::|dit::|^void /g, '')
    let depth = 0
    for (let i = 0; i < short.length; i++) {
      if (short[i] === '<') depth++
      if (short[i] === '>') depth--
      if (short[i] === '(' && depth === 0) return short.slice(0, i)
    }
    return short
  })
}

/** Collects lines of `cuobjdump -sass`; `kernels` holds { symbol, arch, code } of what came so far. */
export class Listing {
  kernels = []
  #arch = ''
  #kernel

  add(line) {
    if (line[0] === '\t' || line[0] !== ' ') {
      const [, symbol] = /^\s*Function : (\S+)/.exec(line) ?? []
      if (symbol) {
        this.#kernel = { symbol, arch: this.#arch, code: [] }
        this.kernels.push(this.#kernel)
      }
      const [, arch] = /^arch = (\S+)/.exec(line) ?? []
      if (arch) this.#arch = arch
      return
    }
    const match =
      /^\s+\/\*([0-9a-f]{4,})\*\/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([.\w]*)\s*([^;]*)/.exec(
        line,
      )
    if (!match || !this.#kernel) return
    const [, address, , kind, modifiers, operands] = match
    this.#kernel.code.push({
      at: Number.parseInt(address, 16),
      kind,
      modifiers: modifiers.split('.').slice(1),
      operands,
    })
  }
}

/** All kernels of a library: { symbol, name, arch, code }. */
export async function disassemble(library, cuobjdump = findCuobjdump()) {
  if (!existsSync(library)) {
    throw new Error(`${library} is not there: it is built where cmake finds nvcc`)
  }
  if (!cuobjdump) {
    throw new Error('cuobjdump and nvdisasm are not there: node scripts/cuda-sass.mjs --fetch')
  }
  const listing = new Listing()
  const folder = path.dirname(cuobjdump)
  const child = spawn(cuobjdump, ['-sass', library], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, PATH: `${folder}${path.delimiter}${process.env.PATH}` },
  })
  const ended = new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code) =>
      code === 0 ? resolve() : reject(new Error(`cuobjdump ended with ${code}`)),
    )
  })
  for await (const line of createInterface({ input: child.stdout })) listing.add(line)
  await ended
  const names = demangle(listing.kernels.map(({ symbol }) => symbol))
  return listing.kernels.map((kernel, i) => ({ ...kernel, name: names[i] }))
}

/** How many instructions there are of a kind, with all of the modifiers that `kind` names. */
export function count(code, kind) {
  const [base, ...modifiers] = kind.split('.')
  return code.filter(
    (each) => each.kind === base && modifiers.every((name) => each.modifiers.includes(name)),
  ).length
}

/** Groups of wgmma: their last instructions name a scoreboard. */
export function groups(code) {
  return code.filter(({ kind, operands }) => kind === 'HGMMA' && /\bgsb\d/.test(operands)).length
}

/** The loop with the most instructions of a kind, of those that contain no other with any: its code. */
export function mainLoop(code, kind) {
  const loops = []
  for (const [end, { at, kind: branch, operands }] of code.entries()) {
    const target = branch === 'BRA' ? Number.parseInt(/0x([0-9a-f]+)/.exec(operands)?.[1], 16) : NaN
    if (!(target < at)) continue
    const begin = code.findIndex((each) => each.at === target)
    const body = code.slice(begin, end + 1)
    if (count(body, kind) > 0) loops.push({ begin, end, body, main: count(body, kind) })
  }
  // A wait that turned out long goes on behind the kernel's end and jumps back, into a loop: no loop
  // of its own, though it crosses the end of one.
  const crosses = (loop, other) =>
    other.begin < loop.begin && loop.begin <= other.end && other.end < loop.end
  const innermost = loops.filter(
    (loop) =>
      !loops.some(
        (other) =>
          crosses(loop, other) ||
          (other !== loop && loop.begin <= other.begin && other.end <= loop.end),
      ),
  )
  return innermost.sort((a, b) => b.main - a.main)[0]?.body
}

function broken(code, expected, where) {
  const faults = []
  for (const [kind, wanted] of Object.entries(expected)) {
    const [got, least] =
      kind === 'groups' ? [groups(code), wanted] : [count(code, kind), [wanted].flat()[0]]
    const exact = !Array.isArray(wanted)
    if (kind === 'perGroup') {
      const products = count(code, 'HGMMA')
      if (products !== wanted * groups(code)) {
        faults.push(`${where}: ${products} HGMMA in ${groups(code)} groups, not ${wanted} in each`)
      }
    } else if (exact ? got !== least : got < least) {
      faults.push(`${where}: ${got} ${kind}, not ${exact ? '' : 'at least '}${least}`)
    }
  }
  return faults
}

/** Instructions that may use global memory. */
const globalMemory = /^(LD|ST|LDG|STG|LDGSTS|ATOM|ATOMG|RED|UTMALDG|UTMASTG|UBLKCP)$/

/** What of a kernel breaks a rule: lines of text. */
export function faultsOf(kernel) {
  return rules
    .filter((rule) => rule.kernel.test(kernel.name) && (rule.arch ?? /./).test(kernel.arch))
    .flatMap((rule) => {
      const faults = broken(kernel.code, rule.counts ?? {}, 'kernel')
      const access = kernel.code.findIndex((each) => globalMemory.test(each.kind))
      if (rule.first && access >= 0) {
        const first = kernel.code.findIndex((each) => each.kind === rule.first)
        if (first > access) faults.push(`${kernel.code[access].kind} before ${rule.first}`)
      }
      if (rule.loop) {
        const loop = mainLoop(kernel.code, rule.main)
        if (loop) faults.push(...broken(loop, rule.loop, 'main loop'))
        else faults.push(`main loop: none with ${rule.main}`)
      }
      return faults.map((fault) => `${kernel.name} (${kernel.arch}): ${fault} (${rule.why})`)
    })
}

/** What the main loop of a kernel does, by the rule that names its instruction; undefined without. */
export function loopOf(kernel) {
  const rule = rules.find(({ kernel: pattern, loop }) => loop && pattern.test(kernel.name))
  const body = rule && mainLoop(kernel.code, rule.main)
  if (!body) return undefined
  const all = (...kinds) => kinds.reduce((sum, kind) => sum + count(body, kind), 0)
  return {
    main: rule.main,
    products: count(body, rule.main),
    instructions: body.length,
    special: all('MUFU'),
    shared: all('LDS', 'LDSM', 'STS'),
    copies: all('LDGSTS', 'UTMALDG', 'LDG'),
    waits: all('BAR', 'SYNCS', 'WARPGROUP', 'DEPBAR', 'LDGDEPBAR', 'WARPSYNC', 'MEMBAR', 'R2UR'),
    kernel: kernel.code.length,
  }
}
