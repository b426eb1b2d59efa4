import { randomBytes } from 'node:crypto'
import { access, type FileHandle, open, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { badFormat, fileError } from '../errors.js'

/** Reads exactly `length` bytes at `position`; the caller has checked them against the file's size. */
export async function readFully(
  handle: FileHandle,
  file: string,
  position: number,
  length: number,
): Promise<Buffer> {
  const buffer = Buffer.alloc(length)
  let done = 0
  while (done < length) {
    const { bytesRead } = await handle.read(buffer, done, length - done, position + done)
    if (bytesRead === 0) throw badFormat(file, `the file ended at byte ${position + done}`)
    done += bytesRead
  }
  return buffer
}

/** A repository cloned without Git LFS has small text files in place of the weights: say so. */
export function checkNotPointer(start: Buffer, file: string): void {
  if (start.subarray(0, 8).toString('latin1') !== 'version ') return
  throw badFormat(
    file,
    'this is not a checkpoint but a Git LFS pointer to one. Run `git lfs pull` in its repository',
  )
}

/** Whether there is a file or folder. Throws ERR_DIT_FILE when that cannot be told. */
export async function exists(file: string): Promise<boolean> {
  try {
    await access(file)
    return true
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw fileError(file, 'read', cause)
  }
}

/**
 * Opens a file, hands it to `use` and closes it, whatever happens. Not by `await using`: Node 20 has
 * its symbols in the main context alone, and Jest 29 runs programs in others.
 */
export async function withFile<T>(
  file: string,
  use: (handle: FileHandle) => Promise<T>,
  flags = 'r',
): Promise<T> {
  const handle = await open(file, flags)
  try {
    return await use(handle)
  } finally {
    await handle.close()
  }
}

/** Has the disk keep a file, or a folder's list of files, whatever happens. */
export async function sync(file: string): Promise<void> {
  await withFile(file, (handle) => handle.sync())
}

/** How the name of a file ends that is not whole yet. */
export const partEnd = '.part'

/**
 * Writes a file that appears whole or not at all, also when the process or the machine stops in the
 * middle; what is left then lies in `folder`, of the same file system. Rejects with ERR_DIT_FILE when it
 * cannot be written.
 */
export async function writeWhole(
  file: string,
  parts: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  folder = path.dirname(file),
): Promise<void> {
  const unique = `${process.pid}-${randomBytes(4).toString('hex')}`
  const part = path.join(folder, `${path.basename(file)}.${unique}${partEnd}`)
  try {
    try {
      const write = async (handle: FileHandle) => {
        for await (const bytes of parts) await handle.writeFile(bytes)
        await handle.sync()
      }
      await withFile(part, write, 'wx')
    } catch (error) {
      await rm(part, { force: true })
      throw error
    }
    await rename(part, file)
    await sync(path.dirname(file))
  } catch (cause) {
    throw fileError(file, 'write', cause)
  }
}
