// Builds build/Release/{dit_native.node, dit_native_test}, and only what changed since the last time.
// In an installed package, whose binaries do not fit the system, it builds the addon alone.
// cmake-js configures (it knows where Node's headers are); then cmake builds by itself, because
// `cmake-js compile` throws everything away after a failure.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import { fileURLToPath } from 'node:url'
import { missingPackages } from './build-tools.mjs'

const root = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '')
// Resolved, since npm puts it beside this package when that is itself a dependency.
const cmakeJs = createRequire(import.meta.url).resolve('cmake-js/bin/cmake-js')
const kMemoryPerCompiler = 1.5e9 // bytes, of the most templated file

function run(command, ...args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' })
  if (error) console.error(`${command}: ${error.message}`)
  if (status !== 0) process.exit(1)
}

/** Whether build/ was configured to the end, and for this folder. */
function isConfigured() {
  if (!existsSync(`${root}/build/build.ninja`) && !existsSync(`${root}/build/Makefile`))
    return false
  const cache = readFileSync(`${root}/build/CMakeCache.txt`, 'utf8')
  return (
    cache.includes(`CMAKE_HOME_DIRECTORY:INTERNAL=${root}\n`) && cache.includes('CMAKE_JS_INC:')
  )
}

if (!isConfigured()) {
  const missing = missingPackages()
  if (missing.length > 0) {
    console.error(
      `dit-native: the build needs what this system lacks: ${missing.join(', ')}. So Debian and Ubuntu ` +
        'call the packages (apt-get install); libdnnl-dev is oneDNN with its headers.',
    )
    process.exit(1)
  }
  rmSync(`${root}/build`, { recursive: true, force: true })
  run(process.execPath, cmakeJs, 'configure', '--log-level', 'warn')
}
const jobs = Math.min(os.availableParallelism(), Math.floor(os.totalmem() / kMemoryPerCompiler))
run('cmake', '--build', 'build', '--parallel', String(Math.max(jobs, 1)))
