// Makes prebuilds/linux-x64, the binaries that the package ships, from those of build/Release:
//
//   npm run prebuild [-- --without-cuda]
//
// prebuildify names, strips and places the files, and calls scripts/prebuild-gyp.mjs for them in the
// place of node-gyp. Its working folder is one of its own, because it moves what it finds.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '')
const { values: flags } = parseArgs({
  options: { 'without-cuda': { type: 'boolean', default: false } },
})
const prebuildify = createRequire(import.meta.url).resolve('prebuildify/bin.js')
const prebuilds = path.join(root, `prebuilds/${process.platform}-${process.arch}`)

rmSync(prebuilds, { recursive: true, force: true })
const { status } = spawnSync(
  process.execPath,
  [
    ...[prebuildify, '--napi', '--strip', '--tag-libc', '--name', 'node.napi'],
    ...['--node-gyp', path.join(root, 'scripts/prebuild-gyp.mjs')],
    ...['--cwd', makeFolder(path.join(root, 'build/prebuild')), '--out', root],
  ],
  { cwd: root, stdio: 'inherit' },
)
if (status !== 0) process.exit(1)

if (!flags['without-cuda'] && !existsSync(path.join(prebuilds, 'libdit_cuda.so'))) {
  rmSync(prebuilds, { recursive: true })
  console.error(
    'prebuild: there is no libdit_cuda.so, because cmake found no nvcc. Install the CUDA toolkit, or ' +
      'make a package that does not know GPUs: npm run prebuild -- --without-cuda',
  )
  process.exit(1)
}
for (const name of readdirSync(prebuilds).sort()) {
  const { size } = statSync(path.join(prebuilds, name))
  console.log(
    `${(size / 2 ** 20).toFixed(2).padStart(8)} MiB  ${path.relative(root, prebuilds)}/${name}`,
  )
}

function makeFolder(folder) {
  mkdirSync(folder, { recursive: true })
  return folder
}
