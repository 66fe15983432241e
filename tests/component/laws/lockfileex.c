/* What store/lock_windows.py relies on of LockFileEx, tried with two processes on one byte far behind the end.
   Exit status 0: all of it holds. Built and run by test_law6_windows.py where Wine and MinGW are installed. */
#include <stdio.h>
#include <string.h>
#include <windows.h>

#define SHARED 0
#define EXCLUSIVE LOCKFILE_EXCLUSIVE_LOCK

static HANDLE file(const char *path)
{
	return CreateFileA(path, GENERIC_READ | GENERIC_WRITE, FILE_SHARE_READ | FILE_SHARE_WRITE, NULL, OPEN_ALWAYS, 0, NULL);
}

static int lock(HANDLE h, DWORD mode)
{
	OVERLAPPED at;
	memset(&at, 0, sizeof at);
	at.Offset = 1u << 30;
	if (LockFileEx(h, mode | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at))
		return 1;
	DWORD code = GetLastError();
	if (code != ERROR_LOCK_VIOLATION && code != ERROR_IO_PENDING) {
		printf("unexpected error %lu\n", code);
		ExitProcess(2);
	}
	return 0;
}

static void unlock(HANDLE h)
{
	OVERLAPPED at;
	memset(&at, 0, sizeof at);
	at.Offset = 1u << 30;
	if (!UnlockFileEx(h, 0, 1, 0, &at)) {
		printf("unlock failed %lu\n", GetLastError());
		ExitProcess(3);
	}
}

#define HOLDS(what) do { if (!(what)) { printf("line %d: %s\n", __LINE__, #what); return 1; } } while (0)

int main(int count, char **words)
{
	if (count == 3) { /* the child: take it alone, say so, wait to be killed */
		HANDLE h = file(words[2]);
		HANDLE ready = OpenEventA(EVENT_MODIFY_STATE, FALSE, "casemate-held");
		if (!lock(h, EXCLUSIVE))
			return 4;
		SetEvent(ready);
		Sleep(60000);
		return 5;
	}
	const char *path = words[1];
	HANDLE one = file(path), other = file(path);
	DWORD done;
	char byte = 1;
	HOLDS(one != INVALID_HANDLE_VALUE && other != INVALID_HANDLE_VALUE);
	HOLDS(lock(one, SHARED) && lock(other, SHARED)); /* readers share, also two handles of one process */
	unlock(other);
	HOLDS(!lock(other, EXCLUSIVE)); /* a writer waits for a reader */
	unlock(one);
	HOLDS(lock(other, EXCLUSIVE) && !lock(one, SHARED) && !lock(one, EXCLUSIVE)); /* and all wait for a writer */
	HOLDS(WriteFile(one, &byte, 1, &done, NULL) && done == 1); /* the gate's byte is not locked with it */
	HANDLE third = file(path);
	CloseHandle(third); /* another handle of the file does not matter */
	HOLDS(!lock(one, SHARED));
	unlock(other);
	HANDLE ready = CreateEventA(NULL, TRUE, FALSE, "casemate-held");
	STARTUPINFOA start = {sizeof start};
	PROCESS_INFORMATION child;
	char line[1024];
	snprintf(line, sizeof line, "\"%s\" child \"%s\"", words[0], path);
	HOLDS(CreateProcessA(NULL, line, NULL, NULL, FALSE, 0, NULL, NULL, &start, &child));
	HOLDS(WaitForSingleObject(ready, 20000) == WAIT_OBJECT_0);
	HOLDS(!lock(one, SHARED)); /* held by another process */
	TerminateProcess(child.hProcess, 9);
	HOLDS(WaitForSingleObject(child.hProcess, 20000) == WAIT_OBJECT_0);
	for (int i = 0; i < 200 && !lock(one, EXCLUSIVE); i++)
		Sleep(10);
	HOLDS(!lock(other, SHARED)); /* so we have it: a killed holder frees it */
	unlock(one);
	HOLDS(lock(other, SHARED));
	puts("holds");
	return 0;
}
