"""How the program of the fast path looks at an array, in LLVM's language: its address, shape and dtype.

NumPy's arrays answer through the buffer protocol, tensors through DLPack's exchange interface for C. Both take some
nanoseconds, where Python would take a microsecond to ask about three arrays.
"""

from __future__ import annotations

from anynorm._libraries.torch_tensors import LOW_ADDRESS

# Words in the text. Of the Py_buffer that a slot begins with, in bytes; and behind it, what was seen of the array.
WORDS = {"OBJ": 8, "NDIM": 36, "FORMAT": 40, "SHAPE": 48, "PLACE": 80, "AXES": 88, "LENGTHS": 96, "CODE": 104}
SLOT_NBYTES = 112
WORDS |= {"IN_ORDER": 0x38, "FORMATTED": 0x04, "WRITABLE": 0x01}  # PyBUF_C_CONTIGUOUS and so on
WORDS |= {"HALF": ord("e"), "SINGLE": ord("f"), "DOUBLE": ord("d"), "UNKNOWN": -1}
# Of a DLTensor.
WORDS |= {"DL_DEVICE": 8, "DL_NDIM": 16, "DL_DTYPE": 20, "DL_SHAPE": 24, "DL_STRIDES": 32, "DL_OFFSET": 40}
WORDS |= {"DL_NBYTES": 48, "DL_CPU": 1, "LOW_ADDRESS": LOW_ADDRESS}
_DL_FLOAT, _DL_BFLOAT, _ONE_LANE = 2, 4, 1 << 16
WORDS |= {f"DL_FLOAT{bits}": _DL_FLOAT | bits << 8 | _ONE_LANE for bits in (16, 32, 64)}
WORDS["DL_BFLOAT16"] = _DL_BFLOAT | 16 << 8 | _ONE_LANE

TEXT = """
define internal i1 @is_of(ptr %object, ptr %type) {
  %ask = load ptr, ptr $PyObject_Type
  %found = call ptr %ask(ptr %object)
  %drop = load ptr, ptr $Py_DecRef
  call void %drop(ptr %found)
  %is = icmp eq ptr %found, %type
  ret i1 %is
}

; An ndarray in C order; its memory is the caller's to release where obj is set.
define internal i1 @look_at_array(ptr %array, ptr %slot, i32 %access) {
  %ndarray = load ptr, ptr $ndarray
  %is_array = call i1 @is_of(ptr %array, ptr %ndarray)
  require %is_array
  %obj_at = getelementptr i8, ptr %slot, i64 OBJ
  %get = load ptr, ptr $PyObject_GetBuffer
  %clear = load ptr, ptr $PyErr_Clear
  %in_order = or i32 %access, IN_ORDER
  %formatted = or i32 %in_order, FORMATTED
  %failed = call i32 %get(ptr %array, ptr %slot, i32 %formatted)
  %is_named = icmp eq i32 %failed, 0
  br i1 %is_named, label %named, label %nameless
named:
  %format_at = getelementptr i8, ptr %slot, i64 FORMAT
  %format = load ptr, ptr %format_at
  %letter = load i8, ptr %format
  %next_at = getelementptr i8, ptr %format, i64 1
  %next = load i8, ptr %next_at
  %is_letter = icmp eq i8 %next, 0
  require %is_letter
  %is_half = icmp eq i8 %letter, HALF
  %is_single = icmp eq i8 %letter, SINGLE
  %is_double = icmp eq i8 %letter, DOUBLE
  %half = select i1 %is_half, i64 0, i64 UNKNOWN
  %single = select i1 %is_single, i64 2, i64 %half
  %format_code = select i1 %is_double, i64 3, i64 %single
  br label %seen
nameless:
  ; No format of a buffer means bfloat16, so that is asked as Python does. Or the array cannot be had at all.
  call void %clear()
  store ptr null, ptr %obj_at
  %bfloat16 = load ptr, ptr $bfloat16
  %is_known = icmp ne ptr %bfloat16, null
  require %is_known
  %attribute = load ptr, ptr $PyObject_GetAttrString
  %dtype = call ptr %attribute(ptr %array, ptr @dtype)
  %is_there = icmp ne ptr %dtype, null
  br i1 %is_there, label %compare, label %refused
compare:
  %drop = load ptr, ptr $Py_DecRef
  call void %drop(ptr %dtype)
  %is_bfloat16 = icmp eq ptr %dtype, %bfloat16
  require %is_bfloat16
  %failed_again = call i32 %get(ptr %array, ptr %slot, i32 %in_order)
  %is_had = icmp eq i32 %failed_again, 0
  br i1 %is_had, label %seen, label %refused
refused:
  call void %clear()
  store ptr null, ptr %obj_at
  br label %misfit
seen:
  %code = phi i64 [ %format_code, %is_letter.holds ], [ 1, %is_bfloat16.holds ]
  %is_real = icmp sge i64 %code, 0
  require %is_real
  %place = load ptr, ptr %slot
  %ndim_at = getelementptr i8, ptr %slot, i64 NDIM
  %ndim = load i32, ptr %ndim_at
  %axes = sext i32 %ndim to i64
  %shape_at = getelementptr i8, ptr %slot, i64 SHAPE
  %shape = load ptr, ptr %shape_at
  call void @found(ptr %slot, ptr %place, i64 %axes, ptr %shape, i64 %code)
  ret i1 true
misfit:
  ret i1 false
}

; A tensor of one of torch's own types on the CPU, in C order, that has memory: an address that is low may be none.
define internal i1 @look_at_tensor(ptr %tensor, ptr %slot, i32 %access) {
  %told = alloca [DL_NBYTES x i8], align 8
  %type = load ptr, ptr $Tensor
  %is_plain = call i1 @is_of(ptr %tensor, ptr %type)
  %parameter = load ptr, ptr $Parameter
  %is_parameter = call i1 @is_of(ptr %tensor, ptr %parameter)
  %is_tensor = or i1 %is_plain, %is_parameter
  require %is_tensor
  %look = load ptr, ptr $look_at_tensor
  %failed = call i32 %look(ptr %tensor, ptr %told)
  %is_told = icmp eq i32 %failed, 0
  br i1 %is_told, label %told_all, label %refused
refused:
  %clear = load ptr, ptr $PyErr_Clear
  call void %clear()
  br label %misfit
told_all:
  %device_at = getelementptr i8, ptr %told, i64 DL_DEVICE
  %device = load i32, ptr %device_at
  %is_on_cpu = icmp eq i32 %device, DL_CPU
  require %is_on_cpu
  %dtype_at = getelementptr i8, ptr %told, i64 DL_DTYPE
  %dtype = load i32, ptr %dtype_at
  %is_half = icmp eq i32 %dtype, DL_FLOAT16
  %is_bfloat = icmp eq i32 %dtype, DL_BFLOAT16
  %is_single = icmp eq i32 %dtype, DL_FLOAT32
  %is_double = icmp eq i32 %dtype, DL_FLOAT64
  %half = select i1 %is_half, i64 0, i64 UNKNOWN
  %bfloat = select i1 %is_bfloat, i64 1, i64 %half
  %single = select i1 %is_single, i64 2, i64 %bfloat
  %code = select i1 %is_double, i64 3, i64 %single
  %is_real = icmp sge i64 %code, 0
  require %is_real
  %data = load i64, ptr %told
  %offset_at = getelementptr i8, ptr %told, i64 DL_OFFSET
  %offset = load i64, ptr %offset_at
  %address = add i64 %data, %offset
  %has_memory = icmp uge i64 %address, LOW_ADDRESS
  require %has_memory
  %place = inttoptr i64 %address to ptr
  %ndim_at = getelementptr i8, ptr %told, i64 DL_NDIM
  %ndim = load i32, ptr %ndim_at
  %axes = sext i32 %ndim to i64
  %shape_at = getelementptr i8, ptr %told, i64 DL_SHAPE
  %shape = load ptr, ptr %shape_at
  %strides_at = getelementptr i8, ptr %told, i64 DL_STRIDES
  %strides = load ptr, ptr %strides_at
  %is_number = icmp eq i64 %axes, 0
  %are_told = icmp ne ptr %strides, null
  %has_strides = or i1 %is_number, %are_told
  require %has_strides
  br label %axis
axis:
  %left = phi i64 [ %axes, %has_strides.holds ], [ %i, %one ]
  %step = phi i64 [ 1, %has_strides.holds ], [ %next_step, %one ]
  %is_over = icmp eq i64 %left, 0
  br i1 %is_over, label %seen, label %one
one:
  %i = sub i64 %left, 1
  %length_at = getelementptr i64, ptr %shape, i64 %i
  %length = load i64, ptr %length_at
  %stride_at = getelementptr i64, ptr %strides, i64 %i
  %stride = load i64, ptr %stride_at
  %is_single_one = icmp eq i64 %length, 1
  %is_next = icmp eq i64 %stride, %step
  %fits = or i1 %is_single_one, %is_next
  %next_step = mul i64 %step, %length
  br i1 %fits, label %axis, label %misfit
seen:
  call void @found(ptr %slot, ptr %place, i64 %axes, ptr %shape, i64 %code)
  ret i1 true
misfit:
  ret i1 false
}

; What was seen of an array.
define internal void @found(ptr %slot, ptr %place, i64 %axes, ptr %lengths, i64 %code) {
  %place_at = getelementptr i8, ptr %slot, i64 PLACE
  store ptr %place, ptr %place_at
  %axes_at = getelementptr i8, ptr %slot, i64 AXES
  store i64 %axes, ptr %axes_at
  %lengths_at = getelementptr i8, ptr %slot, i64 LENGTHS
  store ptr %lengths, ptr %lengths_at
  %code_at = getelementptr i8, ptr %slot, i64 CODE
  store i64 %code, ptr %code_at
  ret void
}
"""
