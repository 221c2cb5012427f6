/* As much of string.h as exported networks need: see math.h. */

#ifndef DEPLOY_STRING_H
#define DEPLOY_STRING_H

#define memcpy(to, from, size) __builtin_memcpy(to, from, size)

#endif
