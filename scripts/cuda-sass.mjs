// Holds the machine code of libdit_cuda.so against scripts/cuda/rules.mjs: prints what breaks a rule
// and exits 1 where anything does. Needs cuobjdump and nvdisasm, which not every toolkit brings.
//
//   node scripts/cuda-sass.mjs [--library=build/Release/libdit_cuda.so] [--table]
//   node scripts/cuda-sass.mjs --fetch     gets the two from Debian's packages (non-free), by apt-get
//
// --table prints what the main loops of the kernels in bf16 are made of, as in bench/KERNELS.md.
import { execFileSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { disassemble, faultsOf, fetchedTools, findCuobjdump, loopOf } from './cuda/sass.mjs'

const root = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '')
const { values } = parseArgs({
  options: {
    library: { type: 'string', default: path.join(root, 'build/Release/libdit_cuda.so') },
    table: { type: 'boolean', default: false },
    fetch: { type: 'boolean', default: false },
  },
})

/** The address of the Debian archive that this system uses. */
function archive() {
  const files = ['/etc/apt/sources.list.d/debian.sources', '/etc/apt/sources.list']
  for (const file of files.filter((each) => existsSync(each))) {
    const text = readFileSync(file, 'utf8')
    const [, uri] =
      /^URIs:\s*(\S+)/m.exec(text) ?? /^deb\s+(?:\[[^\]]*\]\s+)?(\S+)/m.exec(text) ?? []
    if (uri) return uri
  }
  throw new Error('this system has no Debian archive: put cuobjdump and nvdisasm on the PATH')
}

/** Debian 13's, of CUDA 12.4, read what nvcc 13.0 writes. Nothing is installed. */
function fetch() {
  const work = mkdtempSync(path.join(os.tmpdir(), 'dit-cuda-tools-'))
  try {
    for (const folder of ['lists/partial', 'cache/archives/partial', 'root']) {
      mkdirSync(path.join(work, folder), { recursive: true })
    }
    const key = '/usr/share/keyrings/debian-archive-keyring.gpg'
    writeFileSync(
      path.join(work, 'sources.list'),
      `deb [signed-by=${key}] ${archive()} trixie non-free\n`,
    )
    const settings = {
      'Dir::Etc::SourceList': path.join(work, 'sources.list'),
      'Dir::Etc::SourceParts': '/dev/null',
      'Dir::State::Lists': path.join(work, 'lists'),
      'Dir::Cache': path.join(work, 'cache'),
      'APT::Sandbox::User': 'root',
    }
    const options = Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`])
    const run = (command, ...args) =>
      execFileSync(command, args, { cwd: work, stdio: ['ignore', 'ignore', 'inherit'] })
    run('apt-get', ...options, '-qq', 'update')
    run('apt-get', ...options, '-qq', 'download', 'nvidia-cuda-toolkit')
    const packed = readdirSync(work).find((name) => name.endsWith('.deb'))
    run('dpkg-deb', '--extract', packed, 'root')
    mkdirSync(fetchedTools, { recursive: true })
    for (const tool of ['cuobjdump', 'nvdisasm']) {
      cpSync(path.join(work, 'root/usr/bin', tool), path.join(fetchedTools, tool))
    }
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

if (values.fetch) {
  if (!findCuobjdump()) fetch()
  process.exit(0)
}
const kernels = await disassemble(values.library).catch((error) => {
  console.error(`cuda-sass: ${error.message}`)
  process.exit(2)
})
const faults = kernels.flatMap(faultsOf)
if (values.table) {
  console.log(
    '| kernel | arch | loop | products | special | shared memory | copies | waits | kernel |',
  )
  console.log('|---|---|---:|---|---:|---:|---:|---:|---:|')
  for (const kernel of kernels) {
    const loop = loopOf(kernel)
    if (!loop || kernel.arch === 'sm_80' || !/hopper::|Bf16/.test(kernel.name)) continue
    console.log(
      `| \`${kernel.name}\` | ${kernel.arch} | ${loop.instructions} | ${loop.products} ${loop.main} | ` +
        `${loop.special} | ${loop.shared} | ${loop.copies} | ${loop.waits} | ${loop.kernel} |`,
    )
  }
  console.log()
}
for (const fault of faults) console.log(fault)
console.log(`${kernels.length} kernels, ${faults.length} faults`)
process.exitCode = faults.length > 0 ? 1 : 0
