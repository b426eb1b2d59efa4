// Where images go: one file, a grid of them in one file, or a file each.

import { mkdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { DiTError, invalidOption } from '../errors.js'
import { imageGrid, type RawImage } from '../image.js'

const formats = ['.png', '.webp', '.jpg', '.jpeg']
const numbered = /%(0\d)?d/

export type Output =
  | { kind: 'file'; file: string; columns: number | undefined }
  | { kind: 'numbered'; pattern: string }
  | { kind: 'folder'; folder: string }

/**
 * What `--out` means, found out before anything is computed: a name with `%d` (or `%03d`) is a file for
 * each image, numbered from 0; a folder (one that exists, or a name that ends in `/`) gets a file for
 * each, named by class and seed; everything else is one file, of one image or a grid.
 *
 * Rejects with ERR_DIT_OPTION for a name that is none of these, ERR_DIT_FILE when there is no such folder.
 */
export async function planOutput(out: string, columns?: number): Promise<Output> {
  const isFolder = out.endsWith('/') || (await isExistingFolder(out))
  if (!isFolder && !formats.includes(path.extname(out).toLowerCase())) {
    throw invalidOption('--out', `a name that ends in ${formats.join(', ')} or /`, out)
  }
  const each = isFolder || numbered.test(path.basename(out))
  if (each && columns !== undefined) {
    throw invalidOption('--columns', 'nothing where each image is a file', columns)
  }
  if (isFolder) {
    await mkdir(out, { recursive: true })
    return { kind: 'folder', folder: out }
  }
  const folder = path.dirname(out)
  if (!(await isExistingFolder(folder))) {
    throw new DiTError(
      'ERR_DIT_FILE',
      `There is no folder ${path.resolve(folder)} for --out ${out}`,
    )
  }
  return each ? { kind: 'numbered', pattern: out } : { kind: 'file', file: out, columns }
}

async function isExistingFolder(name: string): Promise<boolean> {
  try {
    return (await stat(name)).isDirectory()
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return false
    throw error
  }
}

/** Writes the images; returns the file of each, the same for all of a grid. */
export async function writeImages(output: Output, images: RawImage[]): Promise<string[]> {
  if (output.kind === 'file') {
    const [first] = images
    const { columns } = output
    const whole =
      images.length === 1 && first ? first : await imageGrid(images, columns ? { columns } : {})
    await whole.toFile(output.file)
    return images.map(() => output.file)
  }
  const files = images.map((image, i) => fileName(output, image, i))
  for (const [i, image] of images.entries()) await image.toFile(files[i] as string)
  return files
}

function fileName(
  output: Exclude<Output, { kind: 'file' }>,
  { label, seed }: RawImage,
  i: number,
): string {
  if (output.kind === 'folder') {
    return path.join(output.folder, `class${label}-seed${seed}.png`)
  }
  const { dir, base } = path.parse(output.pattern)
  const width = Number(numbered.exec(base)?.[1] ?? 0)
  return path.join(dir, base.replace(numbered, String(i).padStart(width, '0')))
}
